//! A packet's way through the rules of a host: nat and filter, as netfilter walks them.
//!
//! One host, one connection at a time. Routing is one question: is the address one of the host's own? What should
//! become of a packet is not here but in `oracle`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::kernel::Kernel;

/// `IPS_DST_NAT` and friends of a tracked connection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Connection {
    pub protocol: &'static str,
    /// As the client sent it.
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub mark: u32,
    /// Where DNAT sent it.
    pub translated: Option<SocketAddr>,
    /// Whether its source became an address of the host.
    pub masqueraded: bool,
    /// Where it goes in the end, as the filter sees it.
    pub verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    Drop,
}

/// Where the first packet of a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Through an interface.
    Outside,
    /// A process of the host.
    Host,
}

/// A later packet of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Later {
    /// In the direction of the first.
    Request,
    /// An answer.
    Reply,
    /// An ICMP error about a packet of the client, on its way to the client.
    ErrorToClient,
    /// An ICMP error about an answer, on its way to the server.
    ErrorToServer,
}

pub const LATER: [Later; 4] = [Later::Request, Later::Reply, Later::ErrorToClient, Later::ErrorToServer];

/// Both tables, parsed, and the addresses of the host.
pub struct Host {
    tables: BTreeMap<String, BTreeMap<String, Chain>>,
    local: Vec<IpAddr>,
}

struct Chain {
    policy: Option<Verdict>,
    rules: Vec<Rule>,
}

struct Rule {
    matches: Vec<(bool, Match)>,
    target: Target,
}

enum Match {
    Source(IpNet),
    Destination(IpNet),
    Protocol(String),
    Port(u16, u16),
    State(Vec<String>),
    Mark(u32, u32),
    Chance(f64),
    /// The destination is an address of the host.
    Local,
}

enum Target {
    Nothing,
    Return,
    Final(Verdict),
    Jump(String),
    Goto(String),
    Mark { value: u32, mask: u32 },
    Dnat(IpAddr, Option<u16>),
    Masquerade,
}

/// What a packet looks like to a rule.
struct Packet<'a> {
    protocol: &'a str,
    src: IpAddr,
    dst: SocketAddr,
    local: &'a [IpAddr],
    states: &'a [&'a str],
    connection: &'a mut Connection,
    dice: &'a mut Dice,
}

/// Outcomes of the `statistic` matches of one walk, and how likely they were.
struct Dice {
    script: Vec<bool>,
    thrown: Vec<bool>,
    likelihood: f64,
}

impl Dice {
    fn throw(&mut self, chance: f64) -> bool {
        let hit = self.script.get(self.thrown.len()).copied().unwrap_or(true);
        self.thrown.push(hit);
        self.likelihood *= if hit { chance } else { 1.0 - chance };
        hit
    }
}

/// How a walk through one built-in chain ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// The policy decides.
    Policy,
    Verdict(Verdict),
    Dnat(SocketAddr),
    Masquerade,
}

/// How a chain was left.
enum Left {
    Returned,
    End(End),
}

impl Host {
    pub fn new(kernel: &Kernel, local: &[IpAddr]) -> Self {
        let chain = |chain: &crate::kernel::Chain| Chain {
            policy: chain.policy.as_deref().map(
                |policy| {
                    if policy == "DROP" { Verdict::Drop } else { Verdict::Accept }
                },
            ),
            rules: chain.rules.iter().map(|rule| Rule::parse(rule)).collect(),
        };
        let tables = kernel
            .tables
            .iter()
            // What comes to the host itself is no forwarded packet.
            .filter(|(name, _)| *name != "mangle")
            .map(|(name, table)| {
                (name.clone(), table.chains.iter().map(|(name, rules)| (name.clone(), chain(rules))).collect())
            })
            .collect();
        Self { tables, local: local.to_vec() }
    }

    /// Everything that can become of a new connection, with its likelihood: one entry for each outcome of the dice.
    pub fn connect(
        &self,
        origin: Origin,
        protocol: &'static str,
        src: SocketAddr,
        dst: SocketAddr,
    ) -> Vec<(f64, Connection)> {
        let mut outcomes = Vec::new();
        let mut script = Vec::new();
        loop {
            let mut dice = Dice { script, thrown: Vec::new(), likelihood: 1.0 };
            let connection = self.first_packet(origin, protocol, src, dst, &mut dice);
            outcomes.push((dice.likelihood, connection));
            script = dice.thrown;
            while script.pop_if(|hit| !*hit).is_some() {}
            match script.last_mut() {
                Some(last) => *last = false,
                None => return outcomes,
            }
        }
    }

    fn first_packet(
        &self,
        origin: Origin,
        protocol: &'static str,
        src: SocketAddr,
        dst: SocketAddr,
        dice: &mut Dice,
    ) -> Connection {
        let mut connection =
            Connection { protocol, src, dst, mark: 0, translated: None, masqueraded: false, verdict: Verdict::Accept };
        let before = if origin == Origin::Outside { "PREROUTING" } else { "OUTPUT" };
        match self.walk("nat", before, &["NEW"], src.ip(), dst, &mut connection, dice) {
            End::Dnat(to) => connection.translated = Some(to),
            End::Verdict(Verdict::Drop) => connection.verdict = Verdict::Drop,
            _ => {}
        }
        let now = connection.translated.unwrap_or(dst);
        let hook = match origin {
            Origin::Host => "OUTPUT",
            Origin::Outside if self.local.contains(&now.ip()) => "INPUT",
            Origin::Outside => "FORWARD",
        };
        connection.verdict = self.filter(hook, &["NEW"], src.ip(), now, &mut connection, dice);
        if connection.verdict == Verdict::Accept && hook != "INPUT" {
            let end = self.walk("nat", "POSTROUTING", &["NEW"], src.ip(), now, &mut connection, dice);
            connection.masqueraded = end == End::Masquerade;
        }
        connection
    }

    /// What the filter says to a later packet of `connection`; its addresses are those inside the host, where the
    /// destination is translated and the source is still the client's.
    pub fn later(&self, connection: &Connection, later: Later) -> Verdict {
        let server = connection.translated.unwrap_or(connection.dst);
        let client = connection.src;
        let states: &[&str] =
            if matches!(later, Later::Request | Later::Reply) { &["ESTABLISHED"] } else { &["RELATED"] };
        let (src, dst) = match later {
            Later::Request | Later::ErrorToServer => (client, server),
            Later::Reply | Later::ErrorToClient => (server, client),
        };
        let icmp = if src.is_ipv4() { "icmp" } else { "ipv6-icmp" };
        let protocol = if states == ["RELATED"] { icmp } else { connection.protocol };
        let hook = if self.local.contains(&dst.ip()) { "INPUT" } else { "FORWARD" };
        let mut copy = Connection { protocol, ..*connection };
        let mut dice = Dice { script: Vec::new(), thrown: Vec::new(), likelihood: 1.0 };
        self.filter(hook, states, src.ip(), dst, &mut copy, &mut dice)
    }

    fn filter(
        &self,
        hook: &str,
        states: &[&str],
        src: IpAddr,
        dst: SocketAddr,
        connection: &mut Connection,
        dice: &mut Dice,
    ) -> Verdict {
        if connection.verdict == Verdict::Drop {
            return Verdict::Drop;
        }
        match self.walk("filter", hook, states, src, dst, connection, dice) {
            End::Verdict(verdict) => verdict,
            _ => self.tables["filter"][hook].policy.unwrap(),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "these are what a hook is given")]
    fn walk(
        &self,
        table: &str,
        chain: &str,
        states: &[&str],
        src: IpAddr,
        dst: SocketAddr,
        connection: &mut Connection,
        dice: &mut Dice,
    ) -> End {
        let local = &self.local;
        let mut packet = Packet { protocol: connection.protocol, src, dst, local, states, connection, dice };
        match visit(&self.tables[table], chain, &mut packet) {
            Left::End(end) => end,
            Left::Returned => End::Policy,
        }
    }
}

fn visit(table: &BTreeMap<String, Chain>, chain: &str, packet: &mut Packet<'_>) -> Left {
    for rule in &table[chain].rules {
        if !rule.matches.iter().all(|(negated, test)| packet.is(test) != *negated) {
            continue;
        }
        match &rule.target {
            Target::Nothing => {}
            Target::Return => return Left::Returned,
            Target::Final(verdict) => return Left::End(End::Verdict(*verdict)),
            Target::Jump(to) => {
                if let Left::End(end) = visit(table, to, packet) {
                    return Left::End(end);
                }
            }
            // The end of that chain is the end of this one.
            Target::Goto(to) => return visit(table, to, packet),
            Target::Mark { value, mask } => {
                packet.connection.mark = (packet.connection.mark & !mask) ^ value;
            }
            Target::Dnat(ip, port) => {
                return Left::End(End::Dnat(SocketAddr::new(*ip, port.unwrap_or(packet.dst.port()))));
            }
            Target::Masquerade => return Left::End(End::Masquerade),
        }
    }
    Left::Returned
}

impl Packet<'_> {
    fn is(&mut self, test: &Match) -> bool {
        match test {
            Match::Source(net) => net.contains(&self.src),
            Match::Destination(net) => net.contains(&self.dst.ip()),
            Match::Protocol(name) => name == self.protocol,
            Match::Port(first, last) => (*first..=*last).contains(&self.dst.port()),
            Match::State(states) => states.iter().any(|state| match state.as_str() {
                "DNAT" => self.connection.translated.is_some(),
                "SNAT" => self.connection.masqueraded,
                state => self.states.contains(&state),
            }),
            Match::Mark(value, mask) => self.connection.mark & mask == *value,
            Match::Local => self.local.contains(&self.dst.ip()),
            Match::Chance(chance) => self.dice.throw(*chance),
        }
    }
}

impl Rule {
    fn parse(text: &str) -> Self {
        let mut words = text.split(' ');
        let mut rule = Self { matches: Vec::new(), target: Target::Nothing };
        let mut negated = false;
        while let Some(flag) = words.next() {
            if flag == "!" {
                negated = true;
                continue;
            }
            let mut value = || words.next().unwrap_or_else(|| panic!("{flag} needs a value: {text}"));
            let condition = match flag {
                "-s" => Match::Source(value().parse().unwrap()),
                "-d" => Match::Destination(value().parse().unwrap()),
                "-p" => Match::Protocol(value().to_owned()),
                "--dport" => {
                    let ports = value();
                    let (first, last) = ports.split_once(':').unwrap_or((ports, ports));
                    Match::Port(first.parse().unwrap(), last.parse().unwrap())
                }
                "--ctstate" => Match::State(value().split(',').map(str::to_owned).collect()),
                "--mark" => {
                    let (wanted, mask) = bits(value());
                    Match::Mark(wanted, mask)
                }
                "--probability" => Match::Chance(value().parse().unwrap()),
                "--dst-type" => {
                    assert_eq!(value(), "LOCAL", "{text}");
                    Match::Local
                }
                "--mode" | "-m" => {
                    let module = value();
                    assert!(
                        matches!(
                            module,
                            "tcp" | "udp" | "addrtype" | "conntrack" | "connmark" | "statistic" | "random"
                        ),
                        "{module} is not understood: {text}"
                    );
                    continue;
                }
                "-j" | "-g" => {
                    let name = value();
                    rule.target = target(flag, name, &mut words, text);
                    continue;
                }
                other => panic!("{other} is not understood: {text}"),
            };
            rule.matches.push((std::mem::take(&mut negated), condition));
        }
        rule
    }
}

fn target<'a>(flag: &str, name: &str, words: &mut impl Iterator<Item = &'a str>, text: &str) -> Target {
    let mut option = |flag: &str| {
        assert_eq!(words.next(), Some(flag), "{text}");
        words.next().unwrap()
    };
    match (flag, name) {
        ("-j", "RETURN") => Target::Return,
        ("-j", "ACCEPT") => Target::Final(Verdict::Accept),
        ("-j", "DROP") => Target::Final(Verdict::Drop),
        ("-j", "MASQUERADE") => Target::Masquerade,
        ("-j", "CONNMARK") => {
            let (value, mask) = bits(option("--set-xmark"));
            Target::Mark { value, mask }
        }
        ("-j", "DNAT") => {
            let to = option("--to-destination");
            match to.parse::<SocketAddr>() {
                Ok(socket) => Target::Dnat(socket.ip(), Some(socket.port())),
                Err(_) => Target::Dnat(to.parse().unwrap(), None),
            }
        }
        ("-j", chain) => Target::Jump(chain.to_owned()),
        (_, chain) => Target::Goto(chain.to_owned()),
    }
}

/// `0x10/0xff`.
fn bits(text: &str) -> (u32, u32) {
    let (value, mask) = text.split_once('/').unwrap();
    let hex = |text: &str| u32::from_str_radix(text.strip_prefix("0x").unwrap(), 16).unwrap();
    (hex(value), hex(mask))
}
