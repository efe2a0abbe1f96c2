//! `nft --json list table` → a table.
//!
//! What is not understood becomes something that nobody can tell, never something that is left out.

mod expression;

use std::collections::BTreeMap;

use serde_json::Value;

use self::expression::{Sets, bare, destination, mark_value};
use crate::family::Family;
use crate::firewall::known::{self, Does};
use crate::firewall::{BaseChain, Effect, FirewallRule, FirewallTable, Holder, Hook, MarkOf, Test, To, Verdict, What};

/// Rules that one rule may become: one for each element of the sets of combined values that it asks.
const ALTERNATIVES: usize = 4_096;

/// Why the output of `nft` is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is no JSON.
    #[error("nft printed no JSON")]
    Json(#[from] serde_json::Error),
    /// It has no table of that name.
    #[error("nft printed no table {family} {name}")]
    NoTable {
        /// Its family.
        family: String,
        /// Its name.
        name: String,
    },
}

/// Reads the table `name` of `family` (`inet`, `ip` or `ip6`).
pub fn parse(json: &str, family: &str, name: &str) -> Result<FirewallTable, Error> {
    let all: Value = serde_json::from_str(json)?;
    let objects = all["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
    let here = |object: &Value, table: &str| object["family"] == family && object[table] == name;
    if !objects.iter().any(|object| here(&object["table"], "name")) {
        return Err(Error::NoTable { family: family.to_owned(), name: name.to_owned() });
    }
    let families = match family {
        "ip" => vec![Family::V4],
        "ip6" => vec![Family::V6],
        _ => Family::BOTH.to_vec(),
    };
    let mut table = FirewallTable {
        holder: Holder::Nftables,
        name: name.to_owned(),
        families,
        base: Vec::new(),
        chains: BTreeMap::new(),
        used: objects.iter().any(|object| here(&object["rule"], "table")),
    };
    let sets = objects.iter().flat_map(|object| [&object["set"], &object["map"]]);
    let sets = Sets::new(sets.filter(|set| here(set, "table")));
    for object in objects {
        let (chain, rule) = (&object["chain"], &object["rule"]);
        if here(chain, "table") {
            table.base.extend(base_chain(chain));
            let rules = table.chains.entry(text(&chain["name"])).or_default();
            rules.extend(elsewhere(chain));
        }
        if here(rule, "table") {
            let expressions = rule["expr"].as_array().map(Vec::as_slice).unwrap_or_default();
            let handle = rule["handle"].as_u64().map(|handle| format!("handle {handle}"));
            let reader = Reader::new(&sets, handle.unwrap_or_default());
            table.chains.entry(text(&rule["chain"])).or_default().extend(reader.rules(expressions));
        }
    }
    Ok(table)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Other hooks see no forwarded packet.
fn base_chain(chain: &Value) -> Option<BaseChain> {
    let hook = Hook::named(chain["hook"].as_str()?)?;
    let priority = chain["prio"].as_i64().and_then(|priority| i32::try_from(priority).ok()).unwrap_or_default();
    let (drops, translates) = (chain["policy"] == "drop", chain["type"] == "nat");
    Some(BaseChain { name: text(&chain["name"]), hook, priority, drops, translates })
}

/// A chain of one interface, or of a few, lets everything pass that comes by others, which stands before its rules.
fn elsewhere(chain: &Value) -> Option<FirewallRule> {
    let hook = Hook::named(chain["hook"].as_str()?).filter(|hook| *hook == Hook::Ingress)?;
    let devices = match &chain["dev"] {
        Value::String(device) => vec![device.clone()],
        Value::Array(devices) => devices.iter().map(text).collect(),
        _ => Vec::new(),
    };
    // nft 1.0 does not say which they are.
    let what = if devices.is_empty() { What::Unknown } else { What::In(devices) };
    let tests = vec![Test { what, negated: true }];
    Some(FirewallRule { tests, verdict: Verdict::Accept, text: format!("hook {}", hook.name()), ..Default::default() })
}

/// Reads one rule of nftables, which does one thing after the other and may ask between them.
struct Reader<'a> {
    sets: &'a Sets<'a>,
    text: String,
    /// What it has asked so far: all of one of these.
    tests: Vec<Vec<Test>>,
    /// What it has done since.
    effects: Vec<Effect>,
    rules: Vec<FirewallRule>,
}

impl<'a> Reader<'a> {
    fn new(sets: &'a Sets<'a>, text: String) -> Self {
        Self { sets, text, tests: vec![Vec::new()], effects: Vec::new(), rules: Vec::new() }
    }

    /// Mostly one; with a verdict map one for each of its elements, with an effect before a test one more.
    fn rules(mut self, expressions: &[Value]) -> Vec<FirewallRule> {
        for expression in expressions {
            let Some((name, body)) = expression.as_object().and_then(|object| object.iter().next()) else {
                self.asks(&[vec![unknown(true)]]);
                continue;
            };
            let verdict = match name.as_str() {
                "match" => {
                    let alternatives = match body["op"].as_str() {
                        Some(op @ ("==" | "in")) => self.sets.matching(op, &body["left"], &body["right"], false),
                        Some("!=") => self.sets.matching("==", &body["left"], &body["right"], true),
                        _ => vec![vec![unknown(true)]],
                    };
                    self.asks(&alternatives);
                    continue;
                }
                "vmap" => {
                    self.verdict_map(&body["key"], &body["data"]);
                    return self.rules;
                }
                "xt" => {
                    self.of_iptables(body);
                    continue;
                }
                _ => match self.statement(name, body) {
                    Some(verdict) => verdict,
                    None => continue,
                },
            };
            self.ends(&verdict);
            return self.rules;
        }
        self.ends(&Verdict::Continue);
        self.rules
    }

    /// The verdict of a statement; `None` where the rule goes on.
    fn statement(&mut self, name: &str, body: &Value) -> Option<Verdict> {
        let Some(does) = known::statement(name) else {
            self.untold();
            return None;
        };
        match does {
            Does::Nothing => {}
            // A rate or a number of connections: a part of the packets, which one nobody can tell.
            Does::Narrows => self.asks(&[vec![unknown(false)]]),
            Does::Set => {
                if !body["stmt"].is_null() {
                    self.asks(&[vec![unknown(false)]]);
                }
            }
            Does::Field => self.effects.extend(field(&body["key"], &body["value"])),
            Does::Tracking => self.effects.push(Effect::Untrack),
            Does::Destination => return Some(Verdict::Destination(destination(body))),
            Does::Host => return Some(Verdict::Destination(To::Host)),
            Does::Source => return Some(Verdict::Source),
            Does::HandsOver => return Some(Verdict::Elsewhere),
            _ => match verdict(name, body) {
                Some(verdict) => return Some(verdict),
                None => self.untold(),
            },
        }
        None
    }

    /// What iptables put into a table that only nft shows: of a match nobody can tell whom it is about.
    fn of_iptables(&mut self, body: &Value) {
        let target = body["type"] == "target";
        if target && body["name"].as_str().and_then(known::target) == Some(Does::Nothing) {
            return;
        }
        if target {
            self.untold();
        } else {
            self.asks(&[vec![unknown(true)]]);
        }
    }

    /// What is not known here may do anything, and may or may not go on.
    fn untold(&mut self) {
        self.effects.push(Effect::Untold);
        self.asks(&[vec![unknown(true)]]);
    }

    /// From here on only those that have all of one of `alternatives`.
    fn asks(&mut self, alternatives: &[Vec<Test>]) {
        if !self.effects.is_empty() {
            self.ends(&Verdict::Continue);
            // What was asked of a mark may have changed by now.
            for test in self.tests.iter_mut().flatten() {
                if matches!(test.what, What::ConnectionMark { .. } | What::PacketMark { .. }) {
                    *test = unknown(true);
                }
            }
        }
        if let [one] = alternatives {
            self.tests.iter_mut().for_each(|tests| tests.extend(one.iter().cloned()));
        } else if self.tests.len() * alternatives.len() > ALTERNATIVES {
            self.tests.iter_mut().for_each(|tests| tests.push(unknown(true)));
        } else {
            let both =
                |tests: &Vec<Test>| alternatives.iter().map(|more| [&tests[..], more].concat()).collect::<Vec<_>>();
            self.tests = self.tests.iter().flat_map(both).collect();
        }
    }

    /// What it has done, and how it ends, for those that have what it asked.
    fn ends(&mut self, verdict: &Verdict) {
        let effects = std::mem::take(&mut self.effects);
        let rule = |tests: &Vec<Test>| FirewallRule {
            tests: tests.clone(),
            effects: effects.clone(),
            verdict: verdict.clone(),
            text: self.text.clone(),
        };
        self.rules.extend(self.tests.iter().map(rule));
    }

    fn verdict_map(&mut self, key: &Value, data: &Value) {
        self.asks(&[Vec::new()]);
        let Some(elements) = self.sets.elements(data) else {
            // A map that changes by itself may send these packets anywhere.
            self.asks(&[vec![unknown(false)]]);
            return self.ends(&Verdict::Elsewhere);
        };
        // What stands for everything else comes last.
        let is_rest = |element: &Value| bare(&element[0]).as_str() == Some("*");
        let (rest, named): (Vec<_>, Vec<_>) = elements.iter().partition(|element| is_rest(element));
        let so_far = self.tests.clone();
        for element in named.into_iter().chain(rest) {
            let Some((name, body)) = element[1].as_object().and_then(|verdict| verdict.iter().next()) else { continue };
            let Some(verdict) = verdict(name, body) else { continue };
            if !is_rest(element) {
                self.asks(&self.sets.matching("==", key, bare(&element[0]), false));
            }
            self.ends(&verdict);
            self.tests.clone_from(&so_far);
        }
    }
}

fn verdict(name: &str, body: &Value) -> Option<Verdict> {
    Some(match name {
        "accept" => Verdict::Accept,
        "drop" | "reject" => Verdict::Drop,
        "jump" => Verdict::Jump(text(&body["target"])),
        "goto" => Verdict::Goto(text(&body["target"])),
        "return" => Verdict::Return,
        "continue" => Verdict::Continue,
        _ => return None,
    })
}

/// What it means that the field `key` becomes `value`.
fn field(key: &Value, value: &Value) -> Option<Effect> {
    for (what, of) in [("ct", MarkOf::Connection), ("meta", MarkOf::Packet)] {
        if key[what]["key"] == "mark" {
            let mark = |(of_connection, of_packet, flip)| Effect::Mark { of, of_connection, of_packet, flip };
            return Some(mark_value(value).map_or(Effect::AnyMark(of), mark));
        }
    }
    let names = [&key["payload"]["field"], &key["meta"]["key"], &key["ct"]["key"], &key["tcp option"]["field"]];
    let name = names.into_iter().find_map(Value::as_str).unwrap_or_default();
    let far = matches!(name, "ttl" | "hoplimit") && value.as_u64().is_some_and(|hops| hops > 1);
    (!far && !known::is_harmless_field(name)).then_some(Effect::Untold)
}

fn unknown(negated: bool) -> Test {
    Test { what: What::Unknown, negated }
}
