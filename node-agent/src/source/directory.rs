//! A directory of manifests → its objects, with the last good ones in place of what cannot be read.
//!
//! A file is read again when it changed and has been closed, or has been still for a moment, so that a half-written
//! one is not taken for the whole. Which objects hold is decided in [`super::local`].

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sallyport_runtime::file;

use crate::error_chain::chain_of;
use crate::manifest::{self, DocumentProblem, Identity, Object};
use crate::state::StateDir;

/// A manifest file larger than this is not read: 10,000 forwards fit several times.
const MAX_BYTES: u64 = 32 * 1024 * 1024;
/// A changed file whose writer was not seen to close it is read after it has been still for this long.
const STILL: Duration = Duration::from_millis(300);

/// What is wrong, and with which object of which file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileProblem {
    /// Name of the file in the directory.
    pub file: String,
    /// The object, or the document in the file; absent for the file as a whole.
    pub object: Option<String>,
    /// What is wrong, with the field in front where there is one, and what to do.
    pub message: String,
}

impl std::fmt::Display for FileProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A name may hold line breaks.
        write!(f, "{}: ", self.file.escape_debug())?;
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// The directory cannot be listed; nothing is known of its files.
#[derive(Debug, thiserror::Error)]
#[error("cannot list the manifests in {}; what was last good stays", path.display())]
pub struct Unreadable {
    path: PathBuf,
    source: io::Error,
}

/// What a look at the directory found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Whether objects or problems changed.
    pub changed: bool,
    /// Whether a file is still being written, so that another look is due soon.
    pub unsettled: bool,
}

/// The files of a directory as they were last read.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    files: BTreeMap<String, ManifestFile>,
}

#[derive(Debug)]
struct ManifestFile {
    stamp: Stamp,
    objects: Vec<Object>,
    problems: Vec<FileProblem>,
}

/// Tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// Of a file that was never read, or that nothing can be told of.
    const NONE: Self = Self { device: 0, inode: 0, size: 0, modified: (0, 0), changed: (0, 0) };

    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl Directory {
    /// Knows nothing of the files in `path` yet.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), files: BTreeMap::new() }
    }

    /// Reads what changed. `closed` are files whose writer is known to be done.
    ///
    /// # Errors
    /// When the directory cannot be listed; everything known stays as it was.
    pub fn look(&mut self, closed: &BTreeSet<String>, good: &StateDir) -> Result<Look, Unreadable> {
        let names = self.names_now().map_err(|source| Unreadable { path: self.path.clone(), source })?;
        let mut look = Look { changed: false, unsettled: false };
        if self.files.is_empty() {
            for gone in good.good_names().iter().filter(|name| !names.contains(*name)) {
                forget(good, gone);
            }
        }
        let gone: Vec<String> = self.files.keys().filter(|name| !names.contains(*name)).cloned().collect();
        for name in gone {
            forget(good, &name);
            self.files.remove(&name);
            look.changed = true;
        }
        for name in names {
            let path = self.path.join(&name);
            // Follows links, as in a directory that Kubernetes mounts from a ConfigMap.
            let metadata = fs::metadata(&path);
            let stamp = metadata.as_ref().map_or(Stamp::NONE, Stamp::of);
            // Two states within one tick of the clock look alike, so a file that was just closed is read anyway.
            if !closed.contains(&name) && self.files.get(&name).is_some_and(|file| file.stamp == stamp) {
                continue;
            }
            if let Ok(metadata) = &metadata
                && metadata.is_file()
                && !closed.contains(&name)
                && metadata.modified().is_ok_and(is_fresh)
            {
                look.unsettled = true;
                if let Entry::Vacant(unknown) = self.files.entry(name) {
                    let file = ManifestFile::unsettled(unknown.key(), good);
                    look.changed |= !file.objects.is_empty();
                    unknown.insert(file);
                }
                continue;
            }
            let before = self.files.remove(&name);
            let file = ManifestFile::read(&name, &path, stamp, before.map(|file| file.objects), good);
            self.files.insert(name, file);
            look.changed = true;
        }
        Ok(look)
    }

    /// Every object with the name of its file, one of each identity, and every problem.
    #[must_use]
    pub fn objects(&self) -> (Vec<(&str, &Object)>, Vec<FileProblem>) {
        let mut problems: Vec<FileProblem> =
            self.files.values().flat_map(|file| file.problems.iter().cloned()).collect();
        let mut seen: BTreeMap<Identity, &str> = BTreeMap::new();
        let mut objects = Vec::new();
        for (name, file) in &self.files {
            for object in &file.objects {
                let identity = object.identity();
                if let Some(first) = seen.get(&identity) {
                    let message = format!("is in {first} too; keep one of them");
                    problems.push(FileProblem { file: name.clone(), object: Some(identity.0), message });
                } else {
                    seen.insert(identity, name);
                    objects.push((name.as_str(), object));
                }
            }
        }
        problems.sort();
        (objects, problems)
    }

    /// The file that an object comes from.
    #[must_use]
    pub fn file_of(&self, identity: &Identity) -> Option<&str> {
        let holds = |file: &ManifestFile| file.objects.iter().any(|object| object.identity() == *identity);
        self.files.iter().find(|(_, file)| holds(file)).map(|(name, _)| name.as_str())
    }

    /// The first file with a `GatewayPool` that is not understood.
    #[must_use]
    pub fn broken_pool(&self) -> Option<&str> {
        let is_pool =
            |problem: &FileProblem| problem.object.as_deref().is_some_and(|object| object.starts_with("GatewayPool "));
        self.files.iter().find(|(_, file)| file.problems.iter().any(is_pool)).map(|(name, _)| name.as_str())
    }

    /// Names of the manifest files that are there now.
    pub fn names_now(&self) -> io::Result<BTreeSet<String>> {
        let mut names = BTreeSet::new();
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            if let Some(name) = name.to_str()
                && !name.starts_with('.')
                && Path::new(name).extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
            {
                names.insert(name.to_owned());
            }
        }
        Ok(names)
    }
}

/// Whether a file changed so recently that its writer may not be done.
fn is_fresh(modified: SystemTime) -> bool {
    SystemTime::now().duration_since(modified).is_ok_and(|age| age < STILL)
}

impl ManifestFile {
    /// Stands for a file that cannot be read yet: what was last good of it.
    fn unsettled(name: &str, good: &StateDir) -> Self {
        let message = "is still being written; what was last good of it stays".to_owned();
        let problems = vec![FileProblem { file: name.to_owned(), object: None, message }];
        Self { stamp: Stamp::NONE, objects: last_good(name, good), problems }
    }

    /// Reads the file; what cannot be read leaves in place what `before`, or the state directory, has of it.
    fn read(name: &str, path: &Path, stamp: Stamp, before: Option<Vec<Object>>, good: &StateDir) -> Self {
        let mut objects = Vec::new();
        let mut found = Vec::new();
        match documents(path) {
            Ok(documents) => {
                for document in documents {
                    match document {
                        Ok(object) => objects.push(object),
                        Err(problems) => {
                            found.extend(problems.into_iter().map(|DocumentProblem { object, message }| FileProblem {
                                file: name.to_owned(),
                                object: Some(object.0),
                                message,
                            }));
                        }
                    }
                }
            }
            Err(message) => found.push(FileProblem { file: name.to_owned(), object: None, message }),
        }
        if !found.is_empty() {
            // Something in the file is not understood, so nothing of it is taken for removed.
            let known: BTreeSet<Identity> = objects.iter().map(Object::identity).collect();
            let before = before.unwrap_or_else(|| last_good(name, good));
            // Of a document without a name nobody can say whether it is one of those that were there.
            let named = |object: &String| !object.starts_with("document ");
            let whole = found.iter().all(|problem| problem.object.as_ref().is_some_and(named));
            for object in before.into_iter().filter(|object| !known.contains(&object.identity())) {
                let Identity(gone) = object.identity();
                if whole && found.iter().all(|problem| problem.object.as_ref() != Some(&gone)) {
                    let message =
                        "is not in the file any more, but stays until nothing in the file is wrong".to_owned();
                    found.push(FileProblem { file: name.to_owned(), object: Some(gone), message });
                }
                objects.push(object);
            }
        }
        objects.shrink_to_fit();
        if let Err(error) = good.keep_good_objects(name, &objects) {
            tracing::warn!(file = name, error = chain_of(&error), "cannot keep its good objects");
        }
        Self { stamp, objects, problems: found }
    }
}

fn documents(path: &Path) -> Result<Vec<Result<Object, Vec<DocumentProblem>>>, String> {
    let content = file::read(path, MAX_BYTES).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidInput => error.to_string(),
        io::ErrorKind::FileTooLarge => format!("{error}, split it"),
        _ => format!("cannot be read: {error}"),
    })?;
    let text = String::from_utf8(content).map_err(|_| "is not UTF-8 text".to_owned())?;
    if !text.is_empty() && !text.ends_with('\n') {
        // Cut short, 10.30.1.80/32 is 10.30.1.80/3: valid, and open to an eighth of the Internet.
        return Err("ends without a line break, so it may be cut off; end it with one".to_owned());
    }
    let documents = manifest::read(&mut text.as_bytes());
    if documents.is_empty() {
        return Err("holds no object; delete the file to remove what it held".to_owned());
    }
    Ok(documents)
}

fn last_good(name: &str, good: &StateDir) -> Vec<Object> {
    good.good_objects(name).unwrap_or_else(|error| {
        tracing::warn!(file = name, error = chain_of(&error), "its last good objects are lost");
        Vec::new()
    })
}

fn forget(good: &StateDir, name: &str) {
    if let Err(error) = good.forget_objects(name) {
        tracing::warn!(file = name, error = chain_of(&error), "cannot forget its good objects");
    }
}

#[cfg(test)]
mod tests;
