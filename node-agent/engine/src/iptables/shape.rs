//! What nftables holds without its rules: tables, chains and sets that packets of ours may pass, as of one generation.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use crate::netlink::Error;
use crate::nftables::{Chain, NftFamily, Print, Reader, Set};

/// Chains and sets by family and table.
#[derive(Debug, Default)]
pub(super) struct Shape {
    pub(super) generation: u32,
    tables: BTreeMap<NftFamily, BTreeMap<String, Objects>>,
}

#[derive(Debug, Default)]
struct Objects {
    handle: Option<u64>,
    is_dormant: bool,
    chains: Vec<Chain>,
    sets: Vec<Set>,
}

impl Shape {
    /// Asks the kernel.
    pub(super) fn read(reader: &Reader) -> Result<Self, Error> {
        let mut shape = Self { generation: reader.generation()?, tables: BTreeMap::new() };
        for family in NftFamily::ALL {
            let tables = shape.tables.entry(family).or_default();
            for table in reader.tables(family)? {
                let objects = objects(tables, &table.name);
                (objects.handle, objects.is_dormant) = (table.handle, table.is_dormant);
            }
            reader.chains(family, |table, chain| objects(tables, table).chains.push(chain))?;
            reader.sets(family, |table, set| objects(tables, table).sets.push(set))?;
        }
        Ok(shape)
    }

    fn objects(&self, family: NftFamily, table: &str) -> Option<&Objects> {
        self.tables.get(&family)?.get(table)
    }

    /// Which of all tables that ever were it is, if the kernel tells.
    pub(super) fn handle(&self, family: NftFamily, table: &str) -> Option<u64> {
        self.objects(family, table)?.handle
    }

    /// Whether a table is there, but none of its chains is called.
    pub(super) fn is_dormant(&self, family: NftFamily, table: &str) -> bool {
        self.objects(family, table).is_some_and(|objects| objects.is_dormant)
    }

    /// The chains of a table, in the order of the kernel.
    pub(super) fn chains(&self, family: NftFamily, table: &str) -> &[Chain] {
        self.objects(family, table).map(|objects| objects.chains.as_slice()).unwrap_or_default()
    }

    /// Whether somebody keeps sets in it. iptables leaves them out of what it prints, so a rule that asks one looks as if it
    /// asked nothing.
    pub(super) fn has_sets(&self, family: NftFamily, table: &str) -> bool {
        self.objects(family, table).is_some_and(|objects| !objects.sets.is_empty())
    }

    /// Every table whose chains are called, with these.
    pub(super) fn tables(&self) -> impl Iterator<Item = (NftFamily, &str, &[Chain])> {
        self.tables.iter().flat_map(|(family, tables)| {
            let awake = tables.iter().filter(|(_, objects)| !objects.is_dormant);
            awake.map(|(table, objects)| (*family, table.as_str(), objects.chains.as_slice()))
        })
    }

    /// A hash of all that a table holds but the elements of sets that change by themselves, which are not looked at either when it
    /// is decoded; `None` if it cannot be told from that whether what was decoded is still true. It is of the generation of this shape
    /// only if that is still the generation afterwards.
    pub(super) fn print(&self, reader: &Reader, family: NftFamily, table: &str) -> Result<Option<Print>, Error> {
        let mut hash = Sha256::new();
        let mut add = |bytes: &[u8]| {
            hash.update(bytes.len().to_ne_bytes());
            hash.update(bytes);
        };
        let Some(objects) = self.objects(family, table) else { return Ok(Some(hash.finalize().into())) };
        let Some(handle) = objects.handle else { return Ok(None) };
        add(&handle.to_ne_bytes());
        for chain in &objects.chains {
            add(chain.name.as_bytes());
            add(&[u8::from(chain.base.is_some())]);
            if let Some(base) = &chain.base {
                add(base.kind.as_bytes());
                add(&base.hook.to_ne_bytes());
                add(&base.priority.to_ne_bytes());
                add(&[u8::from(base.drops)]);
            }
        }
        add(b"sets");
        for set in &objects.sets {
            let Some(print) = set.print else { return Ok(None) };
            add(&print);
            if set.is_static {
                add(&reader.elements(family, table, &set.name)?);
            }
        }
        add(b"rules");
        for rule in reader.rules(family, table, None)? {
            if rule.has_interface {
                return Ok(None);
            }
            add(rule.chain.as_bytes());
            add(&rule.print);
        }
        Ok(Some(hash.finalize().into()))
    }
}

fn objects<'a>(tables: &'a mut BTreeMap<String, Objects>, name: &str) -> &'a mut Objects {
    // There are many chains in few tables.
    if !tables.contains_key(name) {
        tables.insert(name.to_owned(), Objects::default());
    }
    tables.get_mut(name).expect("it was put there")
}
