//! Who of others holds a port of this host: a rule that gives what clients send there another destination, as what docker, a
//! hostPort or kube-proxy makes to publish a port.
//!
//! A jump of ours would stand before it and take its clients, as it would take those of a socket. Whose packets the rule is
//! about does not matter, as it does not with a socket: sources may be widened later. One that leads where the forward does
//! takes nothing from anybody (rules made by hand that a forward is to replace); the [stranger](super::stranger) is told of it.

use std::rc::Rc;

use crate::binding::Binding;
use crate::family::Family;
use crate::firewall::leg::Leg;
use crate::firewall::packet::Packet;
use crate::firewall::path::{ClientPath, Finding, Wrong};
use crate::firewall::remedy::{Conflict, conflict};
use crate::firewall::rules::Act;
use crate::firewall::screen::{Hull, Screen, Stage};
use crate::firewall::stranger::goes;
use crate::firewall::walk::{At, End, Listing, walk};
use crate::firewall::{Hook, HostFirewall, To};

/// The rules of others that some forwards could meet where packets come in.
#[derive(Debug)]
pub struct Holds<'a> {
    firewall: &'a HostFirewall,
    /// By family; none for a family without bindings.
    screens: [Option<Screen>; 2],
}

impl<'a> Holds<'a> {
    /// For forwards with these bindings.
    #[must_use]
    pub fn new(firewall: &'a HostFirewall, bindings: &[Binding<'_>]) -> Self {
        let screens = Family::BOTH.map(|family| {
            let hull = Hull::of(bindings.iter().filter(|binding| binding.family() == family))?;
            Some(Screen::new(firewall, family, Some(hull)))
        });
        Self { firewall, screens }
    }

    /// The rule that holds a port of `binding`, if one does.
    #[must_use]
    pub fn on(&self, binding: &Binding<'_>) -> Option<Conflict> {
        let screen = self.screens[usize::from(binding.family() == Family::V6)].as_ref()?;
        let path = ClientPath {
            protocol: Some(binding.protocol()),
            listen: Some(Rc::new([binding.listen..=binding.listen])),
            listen_port: Some(binding.port.port..=binding.port.end_port),
            source_nat: Some(binding.source_nat()),
            ..ClientPath::any(binding.family())
        };
        let mut marks = ((u32::MAX, 0), (u32::MAX, 0));
        for (number, stage) in screen.stages.iter().enumerate() {
            if stage.base.hook != Hook::Prerouting {
                continue;
            }
            let mut packet = Packet { mark: marks.0, own_mark: marks.1, ..path.packet(&stage.base, Leg::First) };
            // Our own rules are the ones that are asked for.
            let outcome = walk(stage, &mut packet, Listing::Unlisted);
            marks = (packet.mark, packet.own_mark);
            let ends = outcome.some.iter().map(|(_, end)| *end).chain([outcome.end]);
            let mut sent = ends.filter_map(|end| match end {
                End::Sent(at) if !leads_alike(stage, at, binding) => Some(at),
                _ => None,
            });
            if let Some(at) = sent.next() {
                let finding =
                    Finding { wrong: Wrong::Held, certain: true, stage: number, at: Some(at), leg: Leg::First };
                return conflict(self.firewall, screen, finding, Some(&path));
            }
            if matches!(outcome.end, End::Dropped(_)) && !outcome.left {
                return None;
            }
        }
        None
    }
}

/// Whether the rule sends packets to `binding` where the forward sends them.
fn leads_alike(stage: &Stage, at: At, binding: &Binding<'_>) -> bool {
    let Act::Destination(to) = &stage.rule(at).act else { return false };
    let To::Addresses { ips: Some(ips), .. } = to else { return false };
    let ports = binding.port.port..=binding.port.end_port;
    let offset = binding.port.target_port.wrapping_sub(binding.port.port);
    ips.start() == ips.end() && binding.targets().any(|target| goes(to, target.ip, &ports, offset))
}
