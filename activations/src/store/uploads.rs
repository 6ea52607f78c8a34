//! A store that is written into an object store: its finished files are sent, in the order in which they count.
//!
//! Shards are written in a directory of this machine, as always, and sent on another thread while the next one is
//! made; there are never more than a few of them here. An object is there as a whole or not at all, so a bucket is at
//! every moment what a directory would be: the journal first, contexts before activations, the manifest last. What is
//! different is that nobody can look into a shard cheaply: so beside the journal there is a list of the shards that were
//! sent, with what the manifest will say of them, and who resumes believes it as far as the objects have these sizes.

use std::fs;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};

use super::directory::journal_path;
use super::manifest::{FORMAT, ShardEntry, acts_path, contexts_path, shard_number, to_json};
use super::part::Part;
use super::spec::StoreSpec;
use crate::error::{Error, Result};
use crate::objects::{Bucket, Object, Staging};

/// What the list of shards says.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sent {
    format: String,
    version: u32,
    /// The part's shards that were sent, in order.
    shards: Vec<ShardEntry>,
}

/// Sends a store's files.
pub(super) struct Uploads {
    part: Part,
    bucket: Bucket,
    staging: Arc<Staging>,
    /// Absent once everything is on its way.
    shards: Option<SyncSender<ShardEntry>>,
    sending: Option<JoinHandle<Result<()>>>,
}

/// Where the list of the shards of a part is.
fn list_name(part: Part) -> String {
    let journal = journal_path("".as_ref(), part);
    journal.with_extension("shards.json").to_string_lossy().into_owned()
}

/// The shards of a part that are in the bucket, by its list and by the objects' sizes.
pub(super) fn sent(names: &[(String, Object)], spec: &StoreSpec, part: Part) -> Result<Vec<ShardEntry>> {
    let list = list_name(part);
    let Some((_, object)) = names.iter().find(|(name, _)| *name == list) else {
        return Ok(Vec::new());
    };
    let bytes = object.bytes()?;
    let sent: Sent = serde_json::from_slice(&bytes)
        .map_err(|e| Error::remote(object.label(), format!("is not the list of a store's shards: {e}")))?;
    if (sent.format.as_str(), sent.version) != (FORMAT, spec.version()) {
        return Err(Error::remote(
            object.label(),
            format!(
                "says format {:?} of version {}, expected {FORMAT:?} of {}",
                sent.format,
                sent.version,
                spec.version()
            ),
        ));
    }
    let size = |path: std::path::PathBuf| {
        let found = names.iter().find(|(name, _)| path.as_os_str() == name.as_str());
        found.map(|(_, object)| object.size())
    };
    let whole = sent.shards.into_iter().enumerate().map_while(|(nth, entry)| {
        let number = part.shard(nth);
        let there = size(acts_path("".as_ref(), number)) == Some(entry.acts_bytes)
            && size(contexts_path("".as_ref(), number)) == Some(entry.contexts_bytes)
            && entry.first_context == number as u64 * spec.contexts_per_shard
            && entry.n_contexts == spec.contexts_per_shard;
        there.then_some(entry)
    });
    Ok(whole.collect())
}

impl Uploads {
    /// Will send what is written in `staging`; the shards `done` are in the bucket.
    pub(super) fn start(bucket: Bucket, staging: Staging, spec: &StoreSpec, part: Part, done: Vec<ShardEntry>) -> Self {
        let staging = Arc::new(staging);
        let (shards, receiver) = sync_channel(1);
        let (to, from) = (bucket.clone(), Arc::clone(&staging));
        let list = Sent {
            format: FORMAT.into(),
            version: spec.version(),
            shards: done,
        };
        let sending = std::thread::spawn(move || send(&to, &from, part, list, &receiver));
        Self {
            part,
            bucket,
            staging,
            shards: Some(shards),
            sending: Some(sending),
        }
    }

    /// Sends the file of a name that is in the directory.
    pub(super) fn file(&self, name: &str) -> Result<()> {
        self.bucket.put_file(name, &self.staging.dir().join(name))
    }

    /// Sends a shard that is complete; waits where the network is slower than the model.
    pub(super) fn shard(&mut self, entry: ShardEntry) -> Result<()> {
        match &self.shards {
            Some(shards) if shards.send(entry).is_ok() => Ok(()),
            // The thread ended with an error.
            _ => self.wait(),
        }
    }

    /// Waits until all shards are there.
    pub(super) fn wait(&mut self) -> Result<()> {
        self.shards = None;
        match self.sending.take() {
            // A panic of the sending thread is this thread's, too.
            Some(sending) => sending.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            None => Ok(()),
        }
    }

    /// Removes what only an unfinished store has.
    pub(super) fn finish(&mut self) -> Result<()> {
        let journal = journal_path("".as_ref(), self.part);
        self.bucket.delete(&journal.to_string_lossy())?;
        self.bucket.delete(&list_name(self.part))
    }
}

impl Drop for Uploads {
    fn drop(&mut self) {
        // A harvest that was stopped: what is complete is sent, so that it need not be made again. An error shows when
        // it is resumed.
        let _ = self.wait();
    }
}

/// Sends shards until there are no more, each with the list that has it.
fn send(bucket: &Bucket, from: &Staging, part: Part, mut sent: Sent, shards: &Receiver<ShardEntry>) -> Result<()> {
    let list = list_name(part);
    while let Ok(entry) = shards.recv() {
        let number = part.shard(sent.shards.len());
        for path in [contexts_path(from.dir(), number), acts_path(from.dir(), number)] {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            bucket.put_file(&name, &path)?;
            fs::remove_file(&path).map_err(Error::io(&path))?;
        }
        sent.shards.push(entry);
        bucket.put(&list, to_json(list.as_ref(), &sent)?, false)?;
    }
    Ok(())
}

/// Removes the part's shards behind the first `keep` from the bucket: they are of another attempt.
pub(super) fn remove_after(bucket: &Bucket, names: &[(String, Object)], part: Part, keep: usize) -> Result<()> {
    for (name, _) in names {
        let number = shard_number(name).filter(|&n| part.owns(n as u64));
        if number.is_some_and(|n| n >= part.shard(keep)) {
            bucket.delete(name)?;
        }
    }
    Ok(())
}
