//! A bucket: listing, reading, writing, from code that waits.

use std::fs::File;
use std::future::Future;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path as Key;
use object_store::{
    BackoffConfig, ClientConfigKey, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions,
    RetryConfig, WriteMultipart,
};
use tokio::runtime::{Builder, Runtime};

use super::place::{ObjectUrl, Service};
use crate::error::{Error, Result};

/// How often a request is repeated: with the waits between, for about a quarter of a minute.
const RETRIES: usize = 8;
/// For a request and its answer, which is at most a block or a part.
const TIMEOUT: &str = "120 s";
/// Larger files are sent in parts of this size, of which some are on the way at the same time.
const PART: u64 = 8 << 20;
const PARTS_AT_ONCE: usize = 4;
/// The most parts that a service takes.
const MOST_PARTS: u64 = 9_000;

/// The runtime of this module.
pub(super) fn runtime() -> Result<&'static Runtime> {
    static RUNTIME: OnceLock<std::io::Result<Runtime>> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| {
        // Whoever was first decides, and all of them can do what is needed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("objects")
            .enable_all()
            .build()
    });
    runtime
        .as_ref()
        .map_err(|e| Error::Invalid(format!("no threads for talking to an object store: {e}")))
}

/// Waits for what is asynchronous.
pub(super) fn wait<F: Future>(future: F) -> Result<F::Output> {
    Ok(runtime()?.block_on(future))
}

/// An open bucket, and a prefix in it.
#[derive(Clone)]
pub(crate) struct Bucket {
    url: ObjectUrl,
    store: Arc<dyn ObjectStore>,
}

/// An object that is there.
#[derive(Clone)]
pub(crate) struct Object {
    bucket: Bucket,
    meta: ObjectMeta,
}

impl Bucket {
    /// Opens the bucket of `url` as the environment says. Nothing is asked of it yet.
    pub(crate) fn open(url: &ObjectUrl) -> Result<Self> {
        runtime()?;
        let store = connect(url).map_err(|e| Error::remote(url.to_string(), advise(url, "opened", &e)))?;
        Ok(Self::of(url.clone(), store))
    }

    pub(super) fn of(url: ObjectUrl, store: Arc<dyn ObjectStore>) -> Self {
        Self { url, store }
    }

    /// The URL of a name below the prefix.
    pub(crate) fn label(&self, name: &str) -> String {
        match (self.url.key(), name) {
            (_, "") => self.url.to_string(),
            ("", name) => format!("{}/{name}", self.url.root()),
            (_, name) => format!("{}/{name}", self.url),
        }
    }

    /// The key of a name below the prefix.
    fn key(&self, name: &str) -> Result<Key> {
        let whole = match (self.url.key(), name) {
            (prefix, "") => prefix.to_owned(),
            ("", name) => name.to_owned(),
            (prefix, name) => format!("{prefix}/{name}"),
        };
        Key::parse(&whole).map_err(|e| Error::remote(self.label(name), format!("is no name of an object: {e}")))
    }

    fn failed(&self, name: &str, what: &str) -> impl FnOnce(object_store::Error) -> Error {
        let (label, url, what) = (self.label(name), self.url.clone(), what.to_owned());
        move |e| Error::remote(label, advise(&url, &what, &e))
    }

    /// The object that the URL itself names, if there is one.
    pub(crate) fn head(&self) -> Result<Option<Object>> {
        match wait(self.store.head(&self.key("")?))? {
            Ok(meta) => Ok(Some(self.object(meta))),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(self.failed("", "looked at")(e)),
        }
    }

    fn object(&self, meta: ObjectMeta) -> Object {
        let bucket = self.clone();
        Object { bucket, meta }
    }

    /// All objects below `prefix`, a name below the URL's own, at any depth.
    pub(crate) fn list(&self, prefix: &str) -> Result<Vec<Object>> {
        let key = self.key(prefix)?;
        let found: Vec<ObjectMeta> =
            wait(self.store.list(Some(&key)).try_collect())?.map_err(self.failed(prefix, "listed"))?;
        Ok(found.into_iter().map(|meta| self.object(meta)).collect())
    }

    /// The objects directly below the URL, each with its name.
    pub(crate) fn names(&self) -> Result<Vec<(String, Object)>> {
        let key = self.key("")?;
        let found = wait(self.store.list_with_delimiter(Some(&key)))?.map_err(self.failed("", "listed"))?;
        let named = found.objects.into_iter().filter_map(|meta| {
            let name = meta.location.filename()?.to_owned();
            Some((name, self.object(meta)))
        });
        let mut named: Vec<_> = named.collect();
        named.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(named)
    }

    /// Puts `bytes` there; with `new`, only if nothing is there yet: false if something is.
    pub(crate) fn put(&self, name: &str, bytes: Vec<u8>, new: bool) -> Result<bool> {
        let key = self.key(name)?;
        let bytes = Bytes::from(bytes);
        let put = |mode: PutMode| {
            let options = PutOptions {
                mode,
                ..PutOptions::default()
            };
            wait(self.store.put_opts(&key, bytes.clone().into(), options))
        };
        let done = match new {
            true => match put(PutMode::Create)? {
                // A service that cannot promise it: then it is up to the user.
                Err(object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. }) => {
                    put(PutMode::Overwrite)?
                }
                done => done,
            },
            false => put(PutMode::Overwrite)?,
        };
        match done {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. }) if new => Ok(false),
            Err(e) => Err(self.failed(name, "written")(e)),
        }
    }

    /// Sends a file. It is there once all of it is.
    pub(crate) fn put_file(&self, name: &str, path: &Path) -> Result<()> {
        let io = |e| Error::io(path)(e);
        let mut file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        if length <= PART {
            let mut bytes = Vec::with_capacity(length as usize);
            file.read_to_end(&mut bytes).map_err(io)?;
            return self.put(name, bytes, false).map(|_| ());
        }
        let key = self.key(name)?;
        let part = PART.max(length / MOST_PARTS);
        let sent: std::result::Result<(), Broken> = wait(async {
            let upload = self.store.put_multipart(&key).await?;
            let mut upload = WriteMultipart::new_with_chunk_size(upload, part as usize);
            loop {
                upload.wait_for_capacity(PARTS_AT_ONCE).await?;
                let mut bytes = Vec::new();
                match file.by_ref().take(part).read_to_end(&mut bytes) {
                    Ok(0) => break,
                    Ok(_) => upload.put(bytes.into()),
                    Err(e) => {
                        // What was sent is forgotten; the error of reading is the one to report.
                        let _ = upload.abort().await;
                        return Err(Broken::File(e));
                    }
                }
            }
            upload.finish().await?;
            Ok(())
        })?;
        sent.map_err(|broken| match broken {
            Broken::File(e) => Error::io(path)(e),
            Broken::Store(e) => self.failed(name, "written")(e),
        })
    }

    /// Removes an object; one that is not there is no error.
    pub(crate) fn delete(&self, name: &str) -> Result<()> {
        match wait(self.store.delete(&self.key(name)?))? {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(self.failed(name, "removed")(e)),
        }
    }
}

/// Why a file was not sent.
enum Broken {
    File(std::io::Error),
    Store(object_store::Error),
}

impl From<object_store::Error> for Broken {
    fn from(error: object_store::Error) -> Self {
        Self::Store(error)
    }
}

impl Object {
    /// Its URL.
    pub(crate) fn label(&self) -> String {
        format!("{}/{}", self.bucket.url.root(), self.meta.location)
    }

    /// Its key.
    pub(crate) fn key(&self) -> &str {
        self.meta.location.as_ref()
    }

    /// Its length in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.meta.size
    }

    /// What changes when its bytes do.
    pub(crate) fn tag(&self) -> String {
        let modified = || self.meta.last_modified.to_rfc3339();
        self.meta.e_tag.clone().unwrap_or_else(modified)
    }

    /// Asks for the bytes `start..end`. If the object is another one by now, that is an error.
    pub(super) fn request(&self, start: u64, end: u64) -> impl Future<Output = Result<Bytes>> + Send + 'static {
        let this = self.clone();
        async move {
            let options = GetOptions {
                range: Some(GetRange::Bounded(start..end)),
                if_match: this.meta.e_tag.clone(),
                ..GetOptions::default()
            };
            let got = async {
                this.bucket
                    .store
                    .get_opts(&this.meta.location, options)
                    .await?
                    .bytes()
                    .await
            };
            let bytes = got
                .await
                .map_err(|e| Error::remote(this.label(), advise(&this.bucket.url, "read", &e)))?;
            match bytes.len() as u64 == end - start {
                true => Ok(bytes),
                false => Err(Error::remote(
                    this.label(),
                    format!("{} bytes came of the {} asked for at {start}", bytes.len(), end - start),
                )),
            }
        }
    }

    /// All of it; for small objects.
    pub(crate) fn bytes(&self) -> Result<Bytes> {
        match self.size() {
            0 => Ok(Bytes::new()),
            size => wait(self.request(0, size))?,
        }
    }
}

/// The service's client, as the environment describes it.
fn connect(url: &ObjectUrl) -> object_store::Result<Arc<dyn ObjectStore>> {
    let retry = RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(5),
            // A wait is drawn between the first and this many times the last one: on average it doubles.
            base: 4.0,
        },
        max_retries: RETRIES,
        retry_timeout: Duration::from_secs(180),
    };
    let timeout = ClientConfigKey::Timeout;
    // Who names an endpoint without TLS wants it.
    let plain = |name: &str| std::env::var(name).is_ok_and(|endpoint| endpoint.starts_with("http://"));
    let allow = ClientConfigKey::AllowHttp;
    Ok(match url.service {
        Service::S3 => {
            let mut builder = AmazonS3Builder::from_env()
                .with_url(url.root())
                .with_retry(retry)
                .with_config(AmazonS3ConfigKey::Client(timeout), TIMEOUT);
            if ["AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AWS_ENDPOINT_URL_S3"]
                .into_iter()
                .any(plain)
            {
                builder = builder.with_config(AmazonS3ConfigKey::Client(allow), "true");
            }
            Arc::new(builder.build()?)
        }
        Service::Google => Arc::new(
            GoogleCloudStorageBuilder::from_env()
                .with_url(url.root())
                .with_retry(retry)
                .with_config(GoogleConfigKey::Client(timeout), TIMEOUT)
                .build()?,
        ),
        Service::Azure => {
            let mut builder = MicrosoftAzureBuilder::from_env()
                .with_url(url.root())
                .with_retry(retry)
                .with_config(AzureConfigKey::Client(timeout), TIMEOUT);
            if ["AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"].into_iter().any(plain) {
                builder = builder.with_config(AzureConfigKey::Client(allow), "true");
            }
            Arc::new(builder.build()?)
        }
    })
}

/// What happened and what to check. `what` was to be done: `read`.
fn advise(url: &ObjectUrl, what: &str, error: &object_store::Error) -> String {
    /// Characters of a server's answer that are shown.
    const SHOWN: usize = 400;
    match error {
        object_store::Error::Precondition { .. } => {
            return "changed while it was read: another program wrote it; start again".into();
        }
        object_store::Error::NotFound { .. } if what == "read" => return "is not there any more".into(),
        _ => {}
    }
    let text = error.to_string();
    let mut words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = words.char_indices().nth(SHOWN) {
        words.truncate(end);
        words.push_str(" ...");
    }
    // Without keys the client asks the machine that Amazon runs it on, and there is none.
    let nobody = match text.contains("/latest/api/token") || text.contains("/latest/meta-data") {
        true => {
            "there are no credentials, and none come from the machine; profiles in ~/.aws are not read (aws \
                 configure export-credentials --format env prints them as variables); "
        }
        false => "",
    };
    format!("could not be {what} ({words}); {nobody}{}", url.service.hint())
}
