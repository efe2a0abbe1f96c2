//! What the API server holds of one kind, as far as this process knows.
//!
//! Fed by a watch and by the answers to our own writes: whoever decides right after a write decides upon it, and its echo
//! in the watch changes nothing. One object that does not decode leaves the others alone and keeps its last good form.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::runtime::watcher::Event;
use sallyport_api::id::Uid;
use sallyport_api::names::FINALIZER;
use sallyport_runtime::once::Once;

use crate::controller::guard::DeserializeGuard;

/// Namespace (empty for a cluster-scoped object) and name.
pub(crate) type Key = (String, String);

/// One object.
#[derive(Clone, Debug)]
pub(crate) enum Entry<K> {
    /// As the API server has it.
    Good(Arc<K>),
    /// Its newest form does not decode: the metadata are new, the rest is the last good form.
    Stale(Arc<K>, String),
    /// It does not decode and never did.
    Unreadable(Box<ObjectMeta>, String),
}

impl<K: Resource<DynamicType = ()>> Entry<K> {
    /// The newest metadata.
    pub(crate) fn meta(&self) -> &ObjectMeta {
        match self {
            Self::Good(object) | Self::Stale(object, _) => object.meta(),
            Self::Unreadable(meta, _) => meta,
        }
    }

    /// The last good form.
    pub(crate) fn object(&self) -> Option<&Arc<K>> {
        match self {
            Self::Good(object) | Self::Stale(object, _) => Some(object),
            Self::Unreadable(..) => None,
        }
    }

    /// Why the newest form does not decode.
    pub(crate) fn problem(&self) -> Option<&str> {
        match self {
            Self::Good(_) => None,
            Self::Stale(_, problem) | Self::Unreadable(_, problem) => Some(problem),
        }
    }

    /// What keeps it from vanishing when it is deleted.
    pub(crate) fn finalizers(&self) -> &[String] {
        self.meta().finalizers.as_deref().unwrap_or_default()
    }

    /// Its `metadata.uid`, which no other object has or had.
    pub(crate) fn uid(&self) -> Uid {
        self.meta().uid.as_deref().unwrap_or_default().into()
    }

    /// Whether our finalizer is on it.
    pub(crate) fn has_our_finalizer(&self) -> bool {
        self.finalizers().iter().any(|finalizer| finalizer == FINALIZER)
    }

    fn revision(&self) -> u64 {
        revision(self.meta())
    }
}

/// All objects of one kind.
#[derive(Debug)]
pub(crate) struct Cache<K> {
    objects: BTreeMap<Key, Entry<K>>,
    /// A list on its way in, while there is one.
    listing: Option<BTreeMap<Key, Entry<K>>>,
    /// What we wrote while the list was on its way: the list may be older.
    written: BTreeSet<Key>,
    complete: bool,
    trouble: Once,
}

impl<K> Default for Cache<K> {
    fn default() -> Self {
        Self {
            objects: BTreeMap::new(),
            listing: None,
            written: BTreeSet::new(),
            complete: false,
            trouble: Once::default(),
        }
    }
}

impl<K: Resource<DynamicType = ()> + Clone> Cache<K> {
    /// Whether a whole list has come in.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete
    }

    /// Why the watch does not work at the moment.
    pub(crate) fn trouble(&self) -> Option<&str> {
        self.trouble.last().map(String::as_str)
    }

    /// All entries in the order of their keys.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&Key, &Entry<K>)> {
        self.objects.iter()
    }

    /// All objects in a form that decodes.
    pub(crate) fn objects(&self) -> impl Iterator<Item = &Arc<K>> {
        self.objects.values().filter_map(Entry::object)
    }

    /// A cluster-scoped object.
    pub(crate) fn get(&self, name: &str) -> Option<&Arc<K>> {
        self.entry("", name)?.object()
    }

    /// An object of a namespace.
    pub(crate) fn entry(&self, namespace: &str, name: &str) -> Option<&Entry<K>> {
        self.objects.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// Takes in what the watch says; whether anything is different now.
    pub(crate) fn feed(&mut self, event: Event<DeserializeGuard<K>>) -> bool {
        // A list begins before anything has been heard.
        if !matches!(event, Event::Init) {
            self.trouble.clear();
        }
        match event {
            Event::Init => {
                self.listing = Some(BTreeMap::new());
                self.written.clear();
                false
            }
            Event::InitApply(object) => {
                let (key, entry) = self.read(object);
                self.listing.get_or_insert_default().insert(key, entry);
                false
            }
            Event::InitDone => self.take_list(),
            Event::Apply(object) => {
                let (key, entry) = self.read(object);
                self.put(key, entry)
            }
            Event::Delete(object) => {
                let (key, entry) = self.read(object);
                self.remove(&key, entry.revision())
            }
        }
    }

    /// Takes in that the watch failed; whether for another reason than it is known to fail for.
    pub(crate) fn failed(&mut self, trouble: &str) -> bool {
        self.trouble.is_news(trouble)
    }

    /// Takes in that this cluster has no such kind; whether that is new.
    pub(crate) fn does_not_exist(&mut self) -> bool {
        !std::mem::replace(&mut self.complete, true)
    }

    /// Takes in the API server's answer to a write of ours.
    pub(crate) fn wrote(&mut self, object: DeserializeGuard<K>) {
        let (key, entry) = self.read(object);
        let meta = entry.meta();
        if meta.deletion_timestamp.is_some() && meta.finalizers.as_ref().is_none_or(Vec::is_empty) {
            // Nothing held it any more, so this was the end of it; another may have its name by now.
            if self.objects.get(&key).is_some_and(|known| known.uid() == entry.uid()) {
                self.objects.remove(&key);
            }
            return;
        }
        self.written.insert(key.clone());
        self.put(key, entry);
    }

    /// Takes in that a cluster-scoped object is gone by our own doing.
    pub(crate) fn deleted(&mut self, name: &str) {
        self.objects.remove(&(String::new(), name.to_owned()));
    }

    fn put(&mut self, key: Key, entry: Entry<K>) -> bool {
        let known = self.objects.get(&key).map_or(0, Entry::revision);
        let newer = known == 0 || entry.revision() > known;
        if newer {
            self.objects.insert(key, entry);
        }
        newer
    }

    fn remove(&mut self, key: &Key, revision: u64) -> bool {
        // An older deletion speaks of a former object of this name.
        let outdated = self.objects.get(key).is_none_or(|known| known.revision() > revision);
        !outdated && self.objects.remove(key).is_some()
    }

    fn take_list(&mut self) -> bool {
        let mut list = self.listing.take().unwrap_or_default();
        for key in std::mem::take(&mut self.written) {
            if let Some(ours) = self.objects.get(&key)
                && list.get(&key).is_none_or(|listed| listed.revision() < ours.revision())
            {
                list.insert(key, ours.clone());
            }
        }
        let same = self.complete
            && self.objects.len() == list.len()
            && self.objects.iter().zip(&list).all(|(a, b)| a.0 == b.0 && a.1.revision() == b.1.revision());
        self.objects = list;
        self.complete = true;
        !same
    }

    fn read(&self, object: DeserializeGuard<K>) -> (Key, Entry<K>) {
        match object.0 {
            Ok(object) => (key(object.meta()), Entry::Good(Arc::new(object))),
            Err(invalid) => {
                let key = key(&invalid.metadata);
                let entry = match self.objects.get(&key).and_then(Entry::object) {
                    Some(good) if good.meta().uid == invalid.metadata.uid => {
                        let mut last = K::clone(good);
                        *last.meta_mut() = invalid.metadata;
                        Entry::Stale(Arc::new(last), invalid.error)
                    }
                    _ => Entry::Unreadable(Box::new(invalid.metadata), invalid.error),
                };
                (key, entry)
            }
        }
    }
}

fn key(meta: &ObjectMeta) -> Key {
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

/// Resource versions of one kind grow, and can be compared as numbers:
/// <https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions>.
fn revision(meta: &ObjectMeta) -> u64 {
    meta.resource_version.as_deref().and_then(|text| text.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
