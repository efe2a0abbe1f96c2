//! Rules of others at random, near enough to what forwards have to meet their packets often, in the words of iptables and nft.

use std::fmt::Write as _;

use sallyport_e2e::lab::Family;

use super::{Flow, Side};

/// A source of choices that gives the same ones for the same seed (xorshift64*).
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, many: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(number).unwrap_or_default() % many
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    fn one_in(&mut self, many: usize) -> bool {
        self.below(many) == 0
    }
}

/// Where a chain of others is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hook {
    Prerouting,
    Forward,
    Postrouting,
}

impl Hook {
    fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Forward => "forward",
            Self::Postrouting => "postrouting",
        }
    }
}

/// What a rule may do where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Raw,
    Mangle,
    Filter,
    Nat,
}

/// A place for rules: a built-in chain of iptables, or a base chain of nftables of that priority.
type Place = (Kind, Hook, &'static str, i32);

const PLACES: &[Place] = &[
    (Kind::Raw, Hook::Prerouting, "raw", -310),
    (Kind::Mangle, Hook::Prerouting, "mangle", -160),
    (Kind::Nat, Hook::Prerouting, "nat", -110),
    (Kind::Nat, Hook::Prerouting, "nat", -90),
    (Kind::Mangle, Hook::Forward, "mangle", -160),
    (Kind::Filter, Hook::Forward, "filter", 5),
    (Kind::Mangle, Hook::Postrouting, "mangle", -160),
    (Kind::Nat, Hook::Postrouting, "nat", 110),
];

/// The rules of others in one scene.
#[derive(Debug, Default)]
pub struct Foreign {
    /// For `iptables-restore --noflush` of our own variant: the chains `X-…` that built-in chains of `filter` and `nat` lead to.
    pub beside_ours: String,
    /// For `iptables-restore` of each variant, ours first: whole tables.
    pub tables: [String; 2],
    /// For `nft -f`.
    pub native: String,
}

impl Foreign {
    pub fn new(dice: &mut Dice, family: Family, flows: &[Flow]) -> Self {
        let mut foreign = Self {
            beside_ours: beside_ours(dice, family, flows),
            tables: [String::new(), String::new()],
            native: String::new(),
        };
        for (number, tables) in [&["raw", "mangle"][..], &["raw", "mangle", "filter", "nat"]].into_iter().enumerate() {
            for table in tables {
                foreign.tables[number] += &whole_table(dice, family, table, flows);
            }
        }
        let ip = if family == Family::V4 { "ip" } else { "ip6" };
        foreign.native = format!("table {ip} site\ndelete table {ip} site\n");
        if dice.one_in(2) {
            let mut chains = String::new();
            for (number, place) in PLACES.iter().enumerate() {
                if dice.one_in(4) {
                    let (kind, hook, _, priority) = *place;
                    let sort = if kind == Kind::Nat { "nat" } else { "filter" };
                    let policy = if kind == Kind::Filter && dice.one_in(4) { "drop" } else { "accept" };
                    let hook_name = hook.name();
                    let _ = writeln!(
                        chains,
                        "chain c{number} {{ type {sort} hook {hook_name} priority {priority}; policy {policy};"
                    );
                    for rule in some_rules(dice, *place, flows) {
                        let _ = writeln!(chains, "  {}", rule.nft(family));
                    }
                    chains += "}\n";
                }
            }
            let _ = write!(foreign.native, "table {ip} site {{\n{chains}}}\n");
        }
        foreign
    }
}

/// Built-in chains lead there from behind our jumps.
pub const BESIDE_OURS: [(&str, &str, &str); 3] = [
    ("filter", "FORWARD", "X-FORWARD"),
    ("nat", "PREROUTING", "X-PREROUTING"),
    ("nat", "POSTROUTING", "X-POSTROUTING"),
];

fn beside_ours(dice: &mut Dice, family: Family, flows: &[Flow]) -> String {
    let mut text = String::new();
    for table in ["filter", "nat"] {
        let _ = writeln!(text, "*{table}");
        if table == "filter" {
            let policy = if dice.one_in(3) { "DROP" } else { "ACCEPT" };
            let _ = writeln!(text, ":FORWARD {policy} [0:0]");
        }
        for (_, builtin, chain) in BESIDE_OURS.iter().filter(|(of, ..)| *of == table) {
            let _ = writeln!(text, ":{chain} - [0:0]");
            let place = PLACES.iter().find(|place| place.2 == table && place.1.name().eq_ignore_ascii_case(builtin));
            if let Some(place) = place.filter(|_| dice.one_in(2)) {
                for rule in some_rules(dice, *place, flows) {
                    let _ = writeln!(text, "-A {chain} {}", rule.iptables(family));
                }
            }
        }
        text += "COMMIT\n";
    }
    text
}

fn whole_table(dice: &mut Dice, family: Family, table: &str, flows: &[Flow]) -> String {
    let mut text = format!("*{table}\n");
    let mut called = String::new();
    for place in PLACES.iter().filter(|place| place.2 == table && place.3 != -90) {
        let builtin = place.1.name().to_ascii_uppercase();
        if place.0 == Kind::Filter && dice.one_in(8) {
            let _ = writeln!(text, ":{builtin} DROP [0:0]");
        }
        if !dice.one_in(5) {
            continue;
        }
        for rule in some_rules(dice, *place, flows) {
            let _ = writeln!(called, "-A {builtin} {}", rule.iptables(family));
        }
        if dice.one_in(3) {
            let chain = format!("Y-{builtin}");
            let _ = writeln!(text, ":{chain} - [0:0]");
            let way = if dice.one_in(4) { "-g" } else { "-j" };
            let rule = Rule { does: Does::Nothing, ..rule(dice, *place, flows) };
            let _ = writeln!(called, "-A {builtin} {} {way} {chain}", rule.asks_iptables(family));
            for rule in some_rules(dice, *place, flows) {
                let _ = writeln!(called, "-A {chain} {}", rule.iptables(family));
            }
        }
    }
    text + &called + "COMMIT\n"
}

/// One to three.
fn some_rules(dice: &mut Dice, place: Place, flows: &[Flow]) -> Vec<Rule> {
    (0..=dice.below(3)).map(|_| rule(dice, place, flows)).collect()
}

/// What a rule asks besides its protocol.
#[derive(Clone, Debug)]
enum Asks {
    From(bool, String),
    To(bool, String),
    Port(bool, u16),
    FromPort(u16),
    In(bool, &'static str),
    Out(&'static str),
    State(bool, &'static str),
    Dnat,
    Mark(bool, u32, u32),
    ConnectionMark(bool, u32, u32),
    Local(bool),
    Syn(bool),
}

#[derive(Clone, Debug)]
enum Does {
    Nothing,
    Accept,
    Drop,
    Return,
    Mark(u32, u32),
    ConnectionMark(u32, u32),
    Save(u32),
    Restore(u32),
    Untrack,
    To(String, Option<u16>),
    Redirect(u16),
    Masquerade,
}

#[derive(Clone, Debug)]
struct Rule {
    tcp: bool,
    asks: Vec<Asks>,
    does: Does,
}

fn rule(dice: &mut Dice, (kind, hook, ..): Place, flows: &[Flow]) -> Rule {
    let flow = dice.of(flows).clone();
    let before = hook == Hook::Prerouting && (kind != Kind::Filter);
    let mut asks = Vec::new();
    for _ in 0..dice.below(4) {
        let not = dice.one_in(4);
        let to = if before { &flow.listen } else { &flow.target };
        let port = if before { flow.port } else { flow.target_port };
        let side = *dice.of(&[Side::Client, Side::Stranger, Side::Target, Side::Listen]);
        asks.push(match dice.below(12) {
            0 | 1 => Asks::From(not, flow.address(side)),
            2 | 3 => Asks::To(not, to.clone()),
            4 | 5 => Asks::Port(not, port),
            6 => Asks::FromPort(flow.target_port),
            7 if hook != Hook::Postrouting => Asks::In(not, dice.of::<&str>(&["eth0", "eth1", "eth2"])),
            8 if hook != Hook::Prerouting => Asks::Out(dice.of::<&str>(&["eth0", "eth1", "eth2"])),
            9 if kind != Kind::Raw => Asks::State(not, dice.of::<&str>(&["NEW", "ESTABLISHED", "INVALID"])),
            10 if kind != Kind::Raw => match dice.below(3) {
                0 => Asks::Dnat,
                1 => Asks::Mark(not, *dice.of(&[0, 1]), *dice.of(&[1, u32::MAX])),
                _ => Asks::ConnectionMark(not, *dice.of(&[0, 1, 0x1000_0000]), *dice.of(&[1, 0x1000_0000, u32::MAX])),
            },
            11 if flow.tcp => Asks::Syn(not),
            _ => Asks::Local(not),
        });
    }
    // The same thing twice is no rule in iptables.
    let mut seen = Vec::new();
    asks.retain(|ask| {
        let sort = std::mem::discriminant(ask);
        let new = !seen.contains(&sort);
        seen.push(sort);
        new
    });
    let does = match (kind, hook) {
        (Kind::Raw, _) if dice.one_in(3) => Does::Untrack,
        (Kind::Nat, Hook::Prerouting) => match dice.below(8) {
            0 => Does::Accept,
            1 => Does::Return,
            2 => Does::Redirect(1),
            3 => Does::To(flow.address(Side::Other), None),
            4 => Does::Nothing,
            _ => Does::To(flow.target.clone(), Some(flow.target_port)),
        },
        (Kind::Nat, _) => dice.of(&[Does::Masquerade, Does::Accept, Does::Return, Does::Nothing]).clone(),
        (Kind::Mangle, _) if dice.one_in(2) => {
            let mask = *dice.of(&[u32::MAX, 0xff, 0xcfff_ffff]);
            match dice.below(4) {
                0 => Does::Mark(1, *dice.of(&[1, u32::MAX])),
                1 => Does::ConnectionMark(*dice.of(&[0, 1]), mask),
                2 => Does::Save(mask),
                _ => Does::Restore(mask),
            }
        }
        _ => dice.of(&[Does::Accept, Does::Drop, Does::Drop, Does::Return, Does::Nothing]).clone(),
    };
    Rule { tcp: flow.tcp, asks, does }
}

impl Rule {
    fn asks_iptables(&self, family: Family) -> String {
        let protocol = if self.tcp { "tcp" } else { "udp" };
        let whole = if family == Family::V4 { 32 } else { 128 };
        let mut text = format!("-p {protocol}");
        for ask in &self.asks {
            let not = |not: bool| if not { "! " } else { "" };
            let _ = match ask {
                Asks::From(n, ip) => write!(text, " {}-s {ip}/{whole}", not(*n)),
                Asks::To(n, ip) => write!(text, " {}-d {ip}/{whole}", not(*n)),
                Asks::Port(n, port) => write!(text, " -m {protocol} {}--dport {port}", not(*n)),
                Asks::FromPort(port) => write!(text, " -m {protocol} --sport {port}"),
                Asks::In(n, name) => write!(text, " {}-i {name}", not(*n)),
                Asks::Out(name) => write!(text, " -o {name}"),
                Asks::State(n, state) => write!(text, " -m conntrack {}--ctstate {state}", not(*n)),
                Asks::Dnat => write!(text, " -m conntrack --ctstate DNAT"),
                Asks::Mark(n, value, mask) => write!(text, " -m mark {}--mark {value:#x}/{mask:#x}", not(*n)),
                Asks::ConnectionMark(n, value, mask) => {
                    write!(text, " -m connmark {}--mark {value:#x}/{mask:#x}", not(*n))
                }
                Asks::Local(n) => write!(text, " -m addrtype {}--dst-type LOCAL", not(*n)),
                Asks::Syn(n) => write!(text, " -m tcp {}--tcp-flags FIN,SYN,RST,ACK SYN", not(*n)),
            };
        }
        text
    }

    fn iptables(&self, family: Family) -> String {
        let asks = self.asks_iptables(family);
        let does = match &self.does {
            Does::Nothing => return asks,
            Does::Accept => "ACCEPT".to_owned(),
            Does::Drop => "DROP".to_owned(),
            Does::Return => "RETURN".to_owned(),
            Does::Mark(value, mask) => format!("MARK --set-xmark {value:#x}/{mask:#x}"),
            Does::ConnectionMark(value, mask) => format!("CONNMARK --set-xmark {value:#x}/{mask:#x}"),
            Does::Save(mask) => format!("CONNMARK --save-mark --nfmask {mask:#x} --ctmask {mask:#x}"),
            Does::Restore(mask) => format!("CONNMARK --restore-mark --nfmask {mask:#x} --ctmask {mask:#x}"),
            Does::Untrack => "CT --notrack".to_owned(),
            Does::To(ip, port) => format!("DNAT --to-destination {}", socket(family, ip, *port)),
            Does::Redirect(port) => format!("REDIRECT --to-ports {port}"),
            Does::Masquerade => "MASQUERADE".to_owned(),
        };
        format!("{asks} -j {does}")
    }

    fn nft(&self, family: Family) -> String {
        let protocol = if self.tcp { "tcp" } else { "udp" };
        let ip = if family == Family::V4 { "ip" } else { "ip6" };
        let mut text = format!("meta l4proto {protocol}");
        for ask in &self.asks {
            let not = |not: bool| if not { "!= " } else { "" };
            let _ = match ask {
                Asks::From(n, from) => write!(text, " {ip} saddr {}{from}", not(*n)),
                Asks::To(n, to) => write!(text, " {ip} daddr {}{to}", not(*n)),
                Asks::Port(n, port) => write!(text, " {protocol} dport {}{port}", not(*n)),
                Asks::FromPort(port) => write!(text, " {protocol} sport {port}"),
                Asks::In(n, name) => write!(text, " iifname {}{name}", not(*n)),
                Asks::Out(name) => write!(text, " oifname {name}"),
                Asks::State(n, state) => write!(text, " ct state {}{}", not(*n), state.to_ascii_lowercase()),
                Asks::Dnat => write!(text, " ct status dnat"),
                Asks::Mark(n, value, mask) => write!(text, " meta mark and {mask:#x} {} {value:#x}", equals(*n)),
                Asks::ConnectionMark(n, value, mask) => {
                    write!(text, " ct mark and {mask:#x} {} {value:#x}", equals(*n))
                }
                Asks::Local(n) => write!(text, " fib daddr type {}local", not(*n)),
                Asks::Syn(n) => write!(text, " tcp flags and (fin | syn | rst | ack) {} syn", equals(*n)),
            };
        }
        let does = match &self.does {
            Does::Nothing => "counter".to_owned(),
            Does::Accept => "accept".to_owned(),
            Does::Drop => "drop".to_owned(),
            Does::Return => "return".to_owned(),
            Does::Mark(value, mask) => format!("meta mark set meta mark and {:#x} xor {value:#x}", !mask),
            Does::ConnectionMark(value, u32::MAX) => format!("ct mark set {value:#x}"),
            Does::ConnectionMark(value, mask) => format!("ct mark set ct mark and {:#x} xor {value:#x}", !mask),
            Does::Save(_) => "ct mark set meta mark".to_owned(),
            Does::Restore(_) => "meta mark set ct mark".to_owned(),
            Does::Untrack => "notrack".to_owned(),
            Does::To(to, None) => format!("dnat to {to}"),
            Does::To(to, port) => format!("dnat to {}", socket(family, to, *port)),
            Does::Redirect(port) => format!("redirect to :{port}"),
            Does::Masquerade => "masquerade".to_owned(),
        };
        format!("{text} {does}")
    }
}

fn equals(not: bool) -> &'static str {
    if not { "!=" } else { "==" }
}

fn socket(family: Family, ip: &str, port: Option<u16>) -> String {
    match (family, port) {
        (_, None) => ip.to_owned(),
        (Family::V4, Some(port)) => format!("{ip}:{port}"),
        (Family::V6, Some(port)) => format!("[{ip}]:{port}"),
    }
}
