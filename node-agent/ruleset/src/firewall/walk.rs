//! What becomes of a packet in a base chain.
//!
//! Whatever may or may not fit is followed both ways, so the answer is certain only if every way ends alike.

use sallyport_api::names::{MARK_MASQUERADE, MARK_OURS};

use crate::firewall::packet::{Fit, Packet};
use crate::firewall::rules::{Act, Rule};
use crate::firewall::screen::Stage;
use crate::firewall::{Effect, MarkOf};

/// Nested chains are followed this far, which is as far as the kernel goes.
const DEPTH: usize = 16;
/// Rules that one packet is held against in one base chain: chains that lead to chains that lead to chains may be more than
/// anybody can follow.
const STEPS: u32 = 100_000;
/// The bits of the connection mark that are ours.
pub(super) const MARKS: u32 = MARK_OURS | MARK_MASQUERADE;

/// A rule of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct At {
    chain: usize,
    rule: usize,
}

impl Stage {
    pub(super) fn rule(&self, at: At) -> &Rule {
        &self.chains[at.chain].as_slice()[at.rule]
    }
}

/// How a way through a chain ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The chain has come back to whoever called it, at the named rule or behind its last one.
    Back(Option<At>),
    Accepted(At),
    /// By a rule, or by the policy.
    Dropped(Option<At>),
    /// To another destination than ours.
    Sent(At),
    /// With another source than ours.
    Renamed(At),
    /// Our rules took it.
    Ours,
    /// Left to somebody of whom nobody can tell what he does.
    HandedOver(At),
    /// It goes on, but nobody can tell as what.
    Untold(At),
    /// It goes on, but connection tracking leaves it alone.
    Untracked(At),
}

/// What our rules do with a packet that gets to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listing {
    /// They translate it, and in the bits of its mark of the former they set the latter.
    Listed(u32, u32),
    /// They let it go on.
    Unlisted,
}

/// What a base chain does with packets.
#[derive(Debug)]
pub(super) struct Outcome {
    /// How those end that came to the end, and whether others may have left on another way before.
    pub(super) end: End,
    pub(super) left: bool,
    /// What may have happened to some of them, or to all.
    pub(super) some: Vec<(Fit, End)>,
    /// Which rule last wrote our bits of the connection mark.
    pub(super) marked: Option<At>,
}

/// What `stage` does with `packet`, whose marks are afterwards those that it leaves with.
pub(super) fn walk(stage: &Stage, packet: &mut Packet<'_>, listing: Listing) -> Outcome {
    let mut way =
        Way { stage, listing, steps: STEPS, reach: Fit::All, gone: None, marked: None, some: Vec::new(), left: false };
    let mut end = way.chain(0, packet, DEPTH);
    if matches!(end, End::Back(_)) && stage.base.drops {
        end = End::Dropped(None);
    }
    if let Some(marks) = way.gone {
        join(packet, marks);
    }
    Outcome { end, left: way.left, some: way.some, marked: way.marked }
}

/// Both marks, as far as they are known.
type Marks = [(u32, u32); 2];

fn marks_of(packet: &Packet<'_>) -> Marks {
    [packet.mark, packet.own_mark]
}

/// Of what some packets have and others may not have, only what is alike is known.
fn join(packet: &mut Packet<'_>, others: Marks) {
    for ((known, holds), (also, there)) in [&mut packet.mark, &mut packet.own_mark].into_iter().zip(others) {
        *known &= also & !(*holds ^ there);
        *holds &= *known;
    }
}

fn joined(packet: &Packet<'_>, so_far: Option<Marks>) -> Marks {
    let mut both = packet.clone();
    if let Some(marks) = so_far {
        join(&mut both, marks);
    }
    marks_of(&both)
}

struct Way<'s> {
    stage: &'s Stage,
    listing: Listing,
    steps: u32,
    /// How many of the packets are in this chain.
    reach: Fit,
    /// The marks of those that have left the base chain.
    gone: Option<Marks>,
    marked: Option<At>,
    some: Vec<(Fit, End)>,
    left: bool,
}

impl Way<'_> {
    fn chain(&mut self, chain: usize, packet: &mut Packet<'_>, depth: usize) -> End {
        let (stage, reach) = (self.stage, self.reach);
        let mut end = End::Back(None);
        // Some may have gone back before the end of the chain.
        let mut went: Option<(At, Option<Marks>)> = None;
        let rules = &stage.chains[chain];
        for number in rules.for_port(packet.destination_port.clone().as_ref()) {
            let rule = &rules.as_slice()[number];
            let at = At { chain, rule: number };
            self.steps = self.steps.saturating_sub(1);
            if self.steps == 0 {
                self.note(Fit::Unclear, End::HandedOver(at));
                break;
            }
            let fit = packet.fits(&rule.tests);
            if fit == Fit::None {
                continue;
            }
            for effect in &rule.effects {
                self.effect(effect, packet, fit, at);
            }
            let ends = match rule.act {
                Act::Continue => continue,
                Act::Accept => End::Accepted(at),
                Act::Drop => End::Dropped(Some(at)),
                Act::Return => End::Back(Some(at)),
                Act::Destination(_) => End::Sent(at),
                Act::Source => End::Renamed(at),
                Act::Elsewhere => {
                    self.note(fit, End::HandedOver(at));
                    continue;
                }
                Act::Ours => match self.listing {
                    Listing::Listed(mask, bits) => {
                        set(&mut packet.mark, mask, bits);
                        End::Ours
                    }
                    Listing::Unlisted => {
                        set(&mut packet.mark, MARKS, 0);
                        continue;
                    }
                },
                Act::Call { .. } if depth == 0 => {
                    self.note(fit, End::HandedOver(at));
                    continue;
                }
                Act::Call { chain: called, back } => {
                    let ends = if fit == Fit::All {
                        self.chain(called, packet, depth - 1)
                    } else {
                        let mut some = packet.clone();
                        let reach = self.reach;
                        self.reach = reach.min(fit);
                        let ends = self.chain(called, &mut some, depth - 1);
                        self.reach = reach;
                        // What names whom it marks is about those.
                        if fit == Fit::Unclear && matches!(ends, End::Back(_)) {
                            join(packet, marks_of(&some));
                        }
                        ends
                    };
                    match ends {
                        End::Back(_) if back => continue,
                        ends => ends,
                    }
                }
            };
            if fit == Fit::All {
                end = ends;
                break;
            }
            if let End::Back(_) = ends {
                // What follows is met by whoever has not gone back.
                self.reach = self.reach.min(Fit::Unclear);
                let marks = went.and_then(|(_, marks)| marks);
                went = Some((at, if fit == Fit::Unclear { Some(joined(packet, marks)) } else { marks }));
            } else {
                self.note(fit, ends);
                if fit == Fit::Unclear && !matches!(ends, End::Dropped(_)) {
                    self.gone = Some(joined(packet, self.gone));
                }
            }
        }
        self.reach = reach;
        if let Some((at, marks)) = went {
            if let Some(marks) = marks {
                join(packet, marks);
            }
            if !matches!(end, End::Back(_)) {
                self.note(Fit::Unclear, end);
                end = End::Back(Some(at));
            }
        }
        end
    }

    /// Some packets end so, or all.
    fn note(&mut self, fit: Fit, end: End) {
        // Of those that are left nobody knows whether all of these are among them.
        let reach = if self.left { self.reach.min(Fit::Unclear) } else { self.reach };
        self.left |= !matches!(end, End::Dropped(_) | End::Untold(_) | End::Untracked(_));
        self.some.push((fit.min(reach), end));
    }

    fn effect(&mut self, effect: &Effect, packet: &mut Packet<'_>, fit: Fit, at: At) {
        let (of, new) = match effect {
            Effect::Untold => return self.note(fit, End::Untold(at)),
            // What is tracked stays so.
            Effect::Untrack if packet.tracked => return,
            Effect::Untrack => return self.note(fit, End::Untracked(at)),
            Effect::AnyMark(of) => (*of, (0, 0)),
            Effect::Mark { of, of_connection, of_packet, flip } => {
                let ((of_c, c), (of_p, p)) = (packet.mark, packet.own_mark);
                let known = (of_c | !of_connection) & (of_p | !of_packet);
                (*of, (known, ((c & of_connection) ^ (p & of_packet) ^ flip) & known))
            }
        };
        // Without a connection there is no mark to write or to read.
        let of_connection = matches!(effect, Effect::Mark { of_connection, .. } if *of_connection != 0);
        if !packet.tracked && (of == MarkOf::Connection || of_connection) {
            return;
        }
        // What names whom it marks is about those.
        if fit == Fit::Some {
            return;
        }
        let mark = packet.mark_of(of);
        let before = *mark;
        *mark = new;
        if fit == Fit::Unclear {
            let common = before.0 & new.0 & !(before.1 ^ new.1);
            *mark = (common, new.1 & common);
        }
        if of == MarkOf::Connection && (mark.0 & MARKS, mark.1 & MARKS) != (before.0 & MARKS, before.1 & MARKS) {
            self.marked = Some(at);
        }
    }
}

/// Writes `bits` where `mask` is.
fn set((known, holds): &mut (u32, u32), mask: u32, bits: u32) {
    *known |= mask;
    *holds = *holds & !mask | bits & mask;
}
