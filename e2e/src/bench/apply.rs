//! How long the kernel's own tool takes for our text, beside a layout with a chain for every forward: all
//! forwards at once, and one that has changed.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::many::{self, Path, TARGET_PORT};
use super::peer;
use super::table::Table;
use crate::lab::{Family, Host, Variant};
use crate::program;
use crate::traffic::percentile;

/// Times each is measured; the medians are compared.
const ROUNDS: usize = 3;

/// Changes measured in each round, back and forth.
const CHANGES: usize = 8;

/// The goals hold at this size.
const LARGE: u16 = 10_000;

/// Measures 100, 1,000 and 10,000 forwards with both variants.
pub fn measure(table: &mut Table) -> Result<()> {
    for variant in Variant::ALL {
        for count in [100, 1_000, LARGE] {
            measure_one(table, variant, count)?;
        }
    }
    Ok(())
}

fn measure_one(table: &mut Table, variant: Variant, count: u16) -> Result<()> {
    let changed = count - 1;
    let (mut full, mut one) = (Pair::default(), Pair::default());
    for _ in 0..ROUNDS {
        let path = Path::build()?;
        let gateway = path.agent(variant, many::manifests(count)?)?;
        let text = many::rendered(&path.gateway, gateway.manifests())?;
        full.ours.push(restore(&path.gateway, variant, &text)?);

        // What `plan` prints depends on what is in the kernel: an agent has to have put it there.
        gateway.once_accepting()?;
        let original = many::forward(changed);
        let mut edited = original.clone();
        edited.target_port = Some(TARGET_PORT + 1);
        gateway.manifests().save(&edited)?;
        let there = many::planned(&gateway)?;
        one.ours.push(restore(&path.gateway, variant, &there)?);
        gateway.manifests().save(&original)?;
        let back = many::planned(&gateway)?;
        for text in [&back, &there].into_iter().cycle().take(CHANGES) {
            one.ours.push(restore(&path.gateway, variant, text)?);
        }

        let path = Path::build()?;
        full.peer.push(restore(&path.gateway, variant, &peer::all(count))?);
        for port in [TARGET_PORT + 1, TARGET_PORT].into_iter().cycle().take(CHANGES + 1) {
            let text = peer::change(changed, port);
            one.peer.push(restore(&path.gateway, variant, &text)?);
        }
    }
    full.report(table, &format!("full apply, {count} forwards, {variant}"), count, 5.0);
    one.report(table, &format!("one change at {count} forwards, {variant}"), count, 2.0);
    Ok(())
}

/// Milliseconds of ours and of the peer.
#[derive(Default)]
struct Pair {
    ours: Vec<f64>,
    peer: Vec<f64>,
}

impl Pair {
    fn report(self, table: &mut Table, what: &str, count: u16, times_faster: f64) {
        let (ours, peer) = (percentile(self.ours, 50), percentile(self.peer, 50));
        let ratio = peer / ours;
        let goal = format!("≥ {times_faster} times faster");
        let goal = (count == LARGE).then_some((goal.as_str(), ratio >= times_faster));
        let (ours, peer) = (format!("{ours:.1} ms"), format!("chain a forward: {peer:.1} ms"));
        table.compare(what, ours, peer, ratio, goal);
    }
}

/// Milliseconds that `iptables-restore --noflush -w` takes for a text, without the time it takes to get into
/// the host.
fn restore(host: &Host, variant: Variant, text: &str) -> Result<f64> {
    let own = program::own()?.display().to_string();
    let program = variant.program(Family::V4, "restore");
    let command = [&own, "time", &program, "--noflush", "-w"];
    let printed = host.check_with_input(&command, text.as_bytes())?;
    printed.trim().parse().context("read the time taken")
}

/// Run a program with all of standard input, and print how many milliseconds it took.
#[derive(Args, Clone, Debug)]
pub struct Time {
    /// The program and its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    command: Vec<String>,
}

impl Time {
    /// Runs, measures and prints.
    #[expect(clippy::print_stdout, reason = "the time is this command's output")]
    pub fn run(&self) -> Result<()> {
        let mut input = Vec::new();
        std::io::stdin().read_to_end(&mut input).context("read the input")?;
        let (program, arguments) = self.command.split_first().context("find the program")?;
        let start = Instant::now();
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .spawn()
            .with_context(|| format!("run {program}"))?;
        let mut stdin = child.stdin.take().context("take the program's input")?;
        stdin.write_all(&input).context("write the program's input")?;
        drop(stdin);
        let status = child.wait().with_context(|| format!("wait for {program}"))?;
        ensure!(status.success(), "{program} ended with {status}");
        println!("{}", start.elapsed().as_secs_f64() * 1e3);
        Ok(())
    }
}
