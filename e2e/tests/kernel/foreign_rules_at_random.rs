//! What the agent says of the path of its forwards is what packets do, whatever rules others have: for rules at random, in
//! both variants of iptables and in tables of nftables, for both families.
//!
//! `SCENES=2000 SEED=7 cargo test -p sallyport-e2e --all-features --test kernel foreign_rules_at_random:: -- --nocapture`
#![expect(clippy::print_stdout, reason = "says how many scenes were clear")]

mod rules;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sallyport_e2e::gateway::{Backend, Gateway};
use sallyport_e2e::lab::{Family, Host, Lab, Process, Variant};
use sallyport_e2e::manifest::{Forward, Manifests};
use sallyport_e2e::traffic::{Answer, Protocol, Question, probe, serve};

use rules::{BESIDE_OURS, Dice, Foreign};

/// So many scenes in each variant of iptables, half of them of each family.
const SCENES: u64 = 100;
/// How long packets that are to be lost are waited for, and those that are not.
const PATIENCE: [Duration; 2] = [Duration::from_millis(60), Duration::from_secs(2)];

/// Who may be asked for in a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Stranger,
    Listen,
    Target,
    Other,
}

/// What one forward is for.
#[derive(Clone, Debug)]
pub struct Flow {
    name: String,
    server: &'static str,
    tcp: bool,
    client: String,
    stranger: String,
    listen: String,
    port: u16,
    target: String,
    target_port: u16,
    other: String,
    source_nat: &'static str,
}

impl Flow {
    fn address(&self, side: Side) -> String {
        let address = match side {
            Side::Client => &self.client,
            Side::Stranger => &self.stranger,
            Side::Listen => &self.listen,
            Side::Target => &self.target,
            Side::Other => &self.other,
        };
        address.clone()
    }

    fn manifest(&self) -> Forward {
        let source = format!("{}/{}", self.client, if self.client.contains(':') { 128 } else { 32 });
        Forward {
            protocol: if self.tcp { "TCP" } else { "UDP" },
            target_port: Some(self.target_port),
            source_nat: self.source_nat,
            addresses: vec![self.listen.clone()],
            ..Forward::tcp(&self.name, self.port, &source, &self.target)
        }
    }

    /// Whether connection tracking knows a connection of `client` that got to the target through the listen port: what is
    /// dropped on the way is never entered.
    fn lets_in(&self, client: &str, entries: &[String]) -> bool {
        let asked = format!("src={client} dst={} ", self.listen);
        let (listen, target) = (format!("dport={} ", self.port), format!("src={} ", self.target));
        entries.iter().any(|entry| {
            entry.split_once(&asked).and_then(|(_, rest)| rest.split_once(&listen)).is_some_and(|(ports, answer)| {
                ports.starts_with("sport=")
                    && answer.contains(&target)
                    && answer.contains(&format!("sport={} ", self.target_port))
            })
        })
    }

    /// Whether the connections of the listed client keep our bit of the mark.
    fn is_marked(&self, entries: &[String]) -> bool {
        let (source, port) = (format!("src={} ", self.client), format!("dport={} ", self.port));
        let mut own = entries.iter().filter(|entry| entry.contains(&source) && entry.contains(&port)).peekable();
        let mark = |entry: &String| -> Option<u32> { entry.split("mark=").nth(1)?.split(' ').next()?.parse().ok() };
        let bit = |entry: &String| mark(entry).is_some_and(|mark| mark & 0x1000_0000 != 0);
        own.peek().is_some() && own.all(bit)
    }

    fn question(&self) -> Result<Question> {
        let protocol = if self.tcp { Protocol::Tcp } else { Protocol::Udp };
        let ip = if self.listen.contains(':') { format!("[{}]", self.listen) } else { self.listen.clone() };
        Ok(Question { protocol, to: format!("{ip}:{}", self.port).parse()? })
    }
}

/// A gateway between two networks, one client that is listed, one that is not, and two servers.
struct Net {
    clients: [Host; 2],
    gateway: Gateway,
    own: Variant,
    flows: [Vec<Flow>; 2],
    _servers: Vec<Process>,
    _lab: Lab,
}

impl Net {
    fn build(own: Variant) -> Result<Self> {
        let mut lab = Lab::new();
        let (front, back) = (lab.network("lan")?, lab.network("back")?);
        let hosts: Vec<Host> =
            ["app1", "app2", "gw1", "db1", "web1"].into_iter().map(|name| lab.host(name)).collect::<Result<_>>()?;
        let [app1, app2, gw1, db1, web1] = &hosts[..] else { unreachable!("five names") };
        for (host, number) in [(app1, 80), (app2, 81), (gw1, 78), (db1, 79)] {
            lab.connect(host, "eth0", &front, &[&format!("10.30.1.{number}/23"), &format!("fd00:30::{number}/64")])?;
        }
        lab.connect(gw1, "eth1", &back, &["10.40.0.1/24", "fd00:40::1/64"])?;
        lab.connect(web1, "eth0", &back, &["10.40.0.10/24", "fd00:40::10/64"])?;
        for host in [app1, app2, db1] {
            host.add_route("10.40.0.0/24", "10.30.1.78")?;
            host.add_route("fd00:40::/64", "fd00:30::78")?;
        }
        web1.add_route("10.30.0.0/23", "10.40.0.1")?;
        web1.add_route("fd00:30::/64", "fd00:40::1")?;
        gw1.write_sysctl("net/ipv4/ip_forward", "1")?;
        gw1.write_sysctl("net/ipv6/conf/all/forwarding", "1")?;

        let manifests = Manifests::new()?;
        let mut flows = [Vec::new(), Vec::new()];
        let mut listeners: [Vec<(Protocol, SocketAddr)>; 2] = [Vec::new(), Vec::new()];
        for (family, base) in [(0, 3300_u16), (1, 3600)] {
            let address = |v4: &str, v6: &str| if family == 0 { v4.to_owned() } else { v6.to_owned() };
            for (number, (tcp, on_db1, shift, source_nat)) in [
                (true, true, 0, "Masquerade"),
                (true, true, 1000, "Masquerade"),
                (false, true, 0, "Masquerade"),
                (true, false, 0, "Masquerade"),
                (true, false, 0, "Preserve"),
            ]
            .into_iter()
            .enumerate()
            {
                let port = base + u16::try_from(number)?;
                let flow = Flow {
                    name: format!("f{port}"),
                    server: if on_db1 { "db1" } else { "web1" },
                    tcp,
                    client: address("10.30.1.80", "fd00:30::80"),
                    stranger: address("10.30.1.81", "fd00:30::81"),
                    listen: address("10.30.1.78", "fd00:30::78"),
                    port,
                    target: if on_db1 {
                        address("10.30.1.79", "fd00:30::79")
                    } else {
                        address("10.40.0.10", "fd00:40::10")
                    },
                    target_port: port + shift,
                    other: if on_db1 {
                        address("10.40.0.10", "fd00:40::10")
                    } else {
                        address("10.30.1.79", "fd00:30::79")
                    },
                    source_nat,
                };
                let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
                let any = if family == 0 { "0.0.0.0" } else { "[::]" };
                // Also where somebody else's rules may lead.
                listeners[usize::from(!on_db1)].push((protocol, format!("{any}:{}", port + shift).parse()?));
                listeners[usize::from(on_db1)].push((protocol, format!("{any}:{port}").parse()?));
                manifests.save(&flow.manifest())?;
                flows[family].push(flow);
            }
        }
        let servers = [(db1, &listeners[0]), (web1, &listeners[1])];
        let servers = servers.into_iter().map(|(host, listeners)| serve(host, listeners)).collect::<Result<_>>()?;
        let gateway = Gateway::new(gw1, Backend::Iptables(own), manifests)?;
        let clients = [app1.clone(), app2.clone()];
        let net = Self { clients, gateway, own, flows, _servers: servers, _lab: lab };
        net.gateway.once_accepting()?;
        for family in [Family::V4, Family::V6] {
            for (table, builtin, chain) in BESIDE_OURS {
                net.gateway.host().iptables(own, family, &format!("-t {table} -N {chain}"))?;
                net.gateway.host().iptables(own, family, &format!("-t {table} -A {builtin} -j {chain}"))?;
            }
        }
        Ok(net)
    }

    fn load(&self, family: Family, foreign: &Foreign) -> Result<()> {
        let host = self.gateway.host();
        let other = if self.own == Variant::Nft { Variant::Legacy } else { Variant::Nft };
        host.iptables_restore(self.own, family, &foreign.beside_ours)?;
        for (variant, tables) in [self.own, other].into_iter().zip(&foreign.tables) {
            host.check_with_input(&[&variant.program(family, "restore"), "-w"], tables.as_bytes())?;
        }
        host.check_with_input(&["nft", "-f", "-"], foreign.native.as_bytes())?;
        Ok(())
    }

    /// Takes all rules of others away.
    fn clear(&self, family: Family) -> Result<()> {
        let empty = |tables: &[&str]| tables.iter().map(|table| format!("*{table}\nCOMMIT\n")).collect::<String>();
        let chain = |of: &str| {
            let chains = BESIDE_OURS.iter().filter(|(table, ..)| *table == of);
            chains.map(|(_, _, chain)| format!(":{chain} - [0:0]\n")).collect::<String>()
        };
        let beside_ours =
            format!("*filter\n:FORWARD ACCEPT [0:0]\n{}COMMIT\n*nat\n{}COMMIT\n", chain("filter"), chain("nat"));
        let other = ["raw", "mangle", "filter", "nat"];
        let accepting = empty(&other).replace("*filter\n", "*filter\n:FORWARD ACCEPT [0:0]\n");
        let ip = if family == Family::V4 { "ip" } else { "ip6" };
        let native = format!("table {ip} site\ndelete table {ip} site\n");
        self.load(family, &Foreign { beside_ours, tables: [empty(&other[..2]), accepting], native })
    }

    /// What the agent says of each flow, and whether all that it says is certain.
    fn judged(&self, flows: &[Flow]) -> Result<(Vec<Option<String>>, bool, String)> {
        let outcome = self.gateway.once()?;
        let said = outcome.stdout + &outcome.stderr;
        let verdict = |flow: &Flow| {
            let line = said.lines().find(|line| line.starts_with("error: ") && line.contains(&flow.name));
            line.map(str::to_owned)
        };
        let clear = !["may be ", "may lose", "may or may not", "may be about", "cannot be told"]
            .iter()
            .any(|word| said.contains(word));
        Ok((flows.iter().map(verdict).collect(), clear, said))
    }

    /// Whether what the agent says is certain where it speaks of this flow alone: of a rule that spoils others for certain it
    /// is not said that it may spoil this one.
    fn is_clear_alone(&self, flow: &Flow, flows: &[Flow]) -> Result<bool> {
        // Whoever comes back waits for those who hold its port by now, unless it never went.
        let (host, state) = (self.gateway.host(), self.gateway.state().display().to_string());
        let kept = format!("{state}.kept");
        host.check(&["cp", "-a", &state, &kept])?;
        let manifests = self.gateway.manifests();
        let others = || flows.iter().filter(|other| other.name != flow.name);
        others().try_for_each(|other| manifests.remove(&format!("{}.yaml", other.name)))?;
        let (_, clear, _) = self.judged(flows)?;
        others().try_for_each(|other| manifests.save(&other.manifest()))?;
        host.check(&["rm", "-r", &state])?;
        host.check(&["mv", &kept, &state])?;
        self.gateway.once()?;
        Ok(clear)
    }
}

/// Whether each flow is answered by its own target.
fn answered(client: &Host, flows: &[&Flow], wait: Duration) -> Result<Vec<bool>> {
    let questions: Vec<Question> = flows.iter().map(|flow| flow.question()).collect::<Result<_>>()?;
    let answers = probe(client, &questions, wait)?;
    let is_right = |(flow, answer): (&&Flow, &Answer)| {
        answer.is_from(flow.server) && matches!(answer, Answer::Heard { port, .. } if *port == flow.target_port)
    };
    Ok(flows.iter().zip(&answers).map(is_right).collect())
}

/// What one scene showed; the text says what is wrong, if anything is.
fn play(net: &Net, family: Family, seed: u64) -> Result<(bool, usize, Option<String>)> {
    let flows = &net.flows[usize::from(family == Family::V6)];
    let foreign = Foreign::new(&mut Dice::new(seed), family, flows);
    net.load(family, &foreign).with_context(|| format!("load {foreign:#?}"))?;
    let (verdicts, clear, said) = net.judged(flows)?;
    let host = net.gateway.host();
    host.check(&["conntrack", "-F"])?;
    // The short wait is for what is lost; what is said to pass has time.
    let all: Vec<&Flow> = flows.iter().collect();
    let mut listed = answered(&net.clients[0], &all, PATIENCE[0])?;
    for (number, flow) in flows.iter().enumerate() {
        if verdicts[number].is_none() && !listed[number] && clear {
            listed[number] = answered(&net.clients[0], &[flow], PATIENCE[1])?[0];
        }
    }
    let entries_of = if family == Family::V4 { "ipv4" } else { "ipv6" };
    let mut entries = host.conntrack(&["-f", entries_of])?;
    // Where answers are lost it is the opening packet, sent once more, that loses our bits.
    let loses = |line: &Option<String>| line.as_ref().is_some_and(|line| line.contains("lose our bits"));
    let unanswered =
        flows.iter().zip(&verdicts).zip(&listed).filter(|((_, line), answered)| loses(line) && !**answered);
    let late: Vec<&Flow> = unanswered.map(|((flow, _), _)| flow).filter(|flow| flow.is_marked(&entries)).collect();
    if !late.is_empty() {
        answered(&net.clients[0], &late, PATIENCE[1])?;
        entries = host.conntrack(&["-f", entries_of])?;
    }
    answered(&net.clients[1], &all, PATIENCE[0])?;
    // Where it goes past the gateway their answer is lost, but they were let in.
    let entries_of_strangers = host.conntrack(&["-f", entries_of])?;
    let strangers: Vec<bool> = flows.iter().map(|flow| flow.lets_in(&flow.stranger, &entries_of_strangers)).collect();
    let mut wrong = Vec::new();
    let mut blocked = 0;
    for (number, flow) in flows.iter().enumerate() {
        let marked = flow.is_marked(&entries);
        let says = |word: &str| verdicts[number].as_ref().is_some_and(|line| line.contains(word));
        let is_right = match &verdicts[number] {
            None if !clear => true,
            None => listed[number] && marked && !strangers[number],
            Some(line) if says("are joined by") => !names(line, &flow.stranger)? || strangers[number],
            Some(_) if says("lose our bits") => !marked,
            Some(_) if says("lose the source address") => true,
            Some(_) if says("are taken before our jump") => !listed[number] || !marked,
            Some(_) => !listed[number],
        };
        blocked += usize::from(verdicts[number].is_some());
        if !is_right && (verdicts[number].is_some() || net.is_clear_alone(flow, flows)?) {
            wrong.push(format!(
                "{flow:?}: listed passes {}, marked {marked}, stranger passes {}, said {:?}",
                listed[number], strangers[number], verdicts[number]
            ));
        }
    }
    let problem = (!wrong.is_empty()).then(|| {
        format!("seed {seed}, {family:?}, {}:\n{}\nsaid:\n{said}\nrules: {foreign:#?}", net.own, wrong.join("\n"))
    });
    net.clear(family)?;
    Ok((clear, blocked, problem))
}

/// Whether a message that names a range of clients, `(by 10.30.1.81 to 10.30.1.99, for one)`, means this one too.
fn names(message: &str, client: &str) -> Result<bool> {
    let range = message.split("(by ").nth(1).and_then(|rest| rest.split(", for one").next()).context("a range")?;
    let (first, last) = range.split_once(" to ").unwrap_or((range, range));
    let (first, last, client): (IpAddr, IpAddr, IpAddr) = (first.parse()?, last.parse()?, client.parse()?);
    Ok(first <= client && client <= last)
}

fn number(name: &str, otherwise: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name}={text}")),
        Err(_) => Ok(otherwise),
    }
}

fn verdicts_are_what_packets_do(own: Variant) -> Result<()> {
    let net = Net::build(own)?;
    let (scenes, seed) = (number("SCENES", SCENES)?, number("SEED", 1)?);
    let (mut clear, mut blocked, mut problems) = (0, 0, Vec::new());
    for scene in (seed..seed + scenes).map(|scene| 2 * scene + u64::from(own == Variant::Legacy)) {
        let family = if scene / 2 % 2 == 0 { Family::V4 } else { Family::V6 };
        let (was_clear, flows, problem) = play(&net, family, scene)?;
        clear += u64::from(was_clear);
        blocked += flows;
        problems.extend(problem);
    }
    println!("{own}: {scenes} scenes, {clear} clear, {blocked} forwards blocked, {} wrong", problems.len());
    ensure!(problems.is_empty(), "{}", problems.join("\n\n"));
    ensure!(clear * 10 >= scenes * 6, "only {clear} of {scenes} scenes were clear");
    Ok(())
}

#[test]
fn what_is_said_is_what_packets_do_beside_iptables_nft() -> Result<()> {
    verdicts_are_what_packets_do(Variant::Nft)
}

#[test]
fn what_is_said_is_what_packets_do_beside_iptables_legacy() -> Result<()> {
    verdicts_are_what_packets_do(Variant::Legacy)
}
