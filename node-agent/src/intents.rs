//! What this node shall do: the value that a source makes and everything else follows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sallyport_api::forward_slice::{ForwardSliceSpec, SliceForward};
use sallyport_api::gateway_node::GatewayNodeSpec;
use sallyport_api::id::Uid;
use sallyport_ruleset::family::Family;
use serde::{Deserialize, Serialize};

/// Everything that this node shall do: its configuration and the slices of its pool. What does not change is shared between
/// one and the next, so that they are compared at a glance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intents {
    /// The node's configuration.
    pub node: GatewayNodeSpec,
    /// Slices by name.
    pub slices: BTreeMap<String, Arc<ForwardSliceSpec>>,
}

/// What is carried instead of forwards, by uid: nothing, or one without what an edit adds to it.
pub type Instead = BTreeMap<Uid, Option<Arc<SliceForward>>>;

/// The forwards that are in only one of two intents.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// In the former one.
    pub gone: Vec<Arc<SliceForward>>,
    /// In the latter one.
    pub come: Vec<Arc<SliceForward>>,
}

impl Intents {
    /// The forwards of all slices.
    pub fn forwards(&self) -> impl Iterator<Item = &Arc<SliceForward>> {
        self.slices.values().flat_map(|slice| &slice.forwards)
    }

    /// The forwards that are only planned, each as it would be.
    pub fn planned(&self) -> impl Iterator<Item = &Arc<SliceForward>> {
        self.slices.values().flat_map(|slice| &slice.planned)
    }

    /// What has changed since `before`, each time with what is carried instead of some forwards. Slices that both share are not
    /// looked at, as long as that is the same.
    #[must_use]
    pub fn changes_since(&self, before: Option<&Self>, instead_before: &Instead, instead: &Instead) -> Changes {
        let mut changes = Changes::default();
        let nothing = BTreeMap::new();
        let former = before.map_or(&nothing, |before| &before.slices);
        let names: BTreeSet<&String> = former.keys().chain(self.slices.keys()).collect();
        for name in names {
            let (was, is) = (former.get(name), self.slices.get(name));
            let same = was.zip(is).is_some_and(|(was, is)| Arc::ptr_eq(was, is));
            if same && instead_before == instead {
                continue;
            }
            let forwards = |slice: Option<&'_ Arc<ForwardSliceSpec>>, instead: &Instead| -> Vec<Arc<SliceForward>> {
                let forwards = slice.into_iter().flat_map(|slice| &slice.forwards);
                let carried = |forward: &Arc<SliceForward>| match instead.get(&forward.uid) {
                    Some(instead) => instead.clone(),
                    None => Some(Arc::clone(forward)),
                };
                forwards.filter_map(carried).collect()
            };
            changes.add(forwards(was, instead_before), forwards(is, instead));
        }
        changes
    }
}

impl Changes {
    /// Adds those that are only in one of two lists; what is in both twice counts twice.
    fn add(&mut self, was: Vec<Arc<SliceForward>>, is: Vec<Arc<SliceForward>>) {
        let mut by_uid: BTreeMap<Uid, Vec<Arc<SliceForward>>> = BTreeMap::new();
        for forward in was {
            by_uid.entry(forward.uid.clone()).or_default().push(forward);
        }
        for forward in is {
            let known = by_uid.get_mut(&forward.uid);
            let at = known.as_ref().and_then(|known| known.iter().position(|known| *known == forward));
            match known.zip(at) {
                Some((known, at)) => drop(known.swap_remove(at)),
                None => self.come.push(forward),
            }
        }
        self.gone.extend(by_uid.into_values().flatten());
    }
}

/// `slice`, but with the forwards that `before` has just like it shared with that.
#[must_use]
pub(crate) fn sharing(mut slice: ForwardSliceSpec, before: Option<&Arc<ForwardSliceSpec>>) -> Arc<ForwardSliceSpec> {
    let Some(before) = before else { return Arc::new(slice) };
    if slice == **before {
        return Arc::clone(before);
    }
    let known: BTreeMap<&Uid, &Arc<SliceForward>> = before.forwards.iter().map(|was| (&was.uid, was)).collect();
    for forward in &mut slice.forwards {
        if let Some(was) = known.get(&forward.uid).filter(|was| **was == forward) {
            *forward = Arc::clone(was);
        }
    }
    Arc::new(slice)
}

/// What the kernel holds rules of in families with a table that cannot be read, where that is not what the intents say.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Carried {
    /// For IPv4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v4: Option<Intents>,
    /// For IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v6: Option<Intents>,
}

impl Carried {
    /// Those that there are.
    pub fn into_families(self) -> impl Iterator<Item = (Family, Intents)> {
        [(Family::V4, self.v4), (Family::V6, self.v6)]
            .into_iter()
            .filter_map(|(family, intents)| Some((family, intents?)))
    }
}
