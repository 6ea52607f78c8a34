//! Texts in an object store: an object, a prefix as if it were a directory, or a pattern, by the rules for local files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::files::{MATCHING, has_wildcards, of_one_kind};
use super::format::{Format, of_name};
use crate::error::{Error, Result};
use crate::objects::{Bucket, Object, ObjectUrl};

/// The objects that a URL names, sorted as the paths of files would be.
pub(super) fn find(url: &ObjectUrl, format: Option<Format>) -> Result<Vec<Object>> {
    if has_wildcards(url.key()) {
        return matches(url);
    }
    let bucket = Bucket::open(url)?;
    if !url.is_folder()
        && let Some(object) = bucket.head()?
    {
        return Ok(vec![object]);
    }
    let all = bucket.list("")?;
    if all.is_empty() {
        return Err(Error::remote(
            url.to_string(),
            "there is no object of this name, and none below it",
        ));
    }
    let mut found: BTreeMap<Format, Vec<Object>> = BTreeMap::new();
    for object in all {
        let below = object.key()[url.key().len()..].trim_start_matches('/');
        if let (Some(format), _) = of_name(Path::new(below))
            && !is_hidden(below)
        {
            found.entry(format).or_default().push(object);
        }
    }
    let files = of_one_kind(found, format).map_err(|problem| Error::remote(url.to_string(), problem))?;
    Ok(sorted(files))
}

/// Whether a part of a name begins with a dot.
fn is_hidden(name: &str) -> bool {
    name.split('/').any(|part| part.starts_with('.'))
}

fn sorted(mut objects: Vec<Object>) -> Vec<Object> {
    objects.sort_by_cached_key(|object| PathBuf::from(object.key()));
    objects
}

/// The objects that a pattern matches.
fn matches(url: &ObjectUrl) -> Result<Vec<Object>> {
    let bad = |problem: &str| Error::remote(url.to_string(), problem);
    let pattern = glob::Pattern::new(url.key()).map_err(|e| bad(&format!("is no pattern of names: {}", e.msg)))?;
    // Everything before the first wildcard, up to a slash, is the same in all that match.
    let literal = url.key().find(['*', '?', '[']).map_or(url.key(), |at| &url.key()[..at]);
    let prefix = literal.rsplit_once('/').map_or("", |(prefix, _)| prefix);
    let all = Bucket::open(&url.with_key(prefix))?.list("")?;
    let found: Vec<Object> = all
        .into_iter()
        .filter(|object| pattern.matches_with(object.key(), MATCHING))
        .collect();
    match found.is_empty() {
        true => Err(bad("no object matches this pattern")),
        false => Ok(sorted(found)),
    }
}
