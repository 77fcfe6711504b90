// Package failover decides which gateway the flows of a network use. It is
// pure: it is told which probes were answered and what time it is, and says
// which probes to send, which path each group of flows uses, and what changed.
//
// # Words
//
// A path is a tunnel to one gateway host. A group is a set of flows that prefer
// the paths in the same order; its choice is the path that new flows take. A
// probe is a question with a sequence number that the far end of the tunnel
// answers, with the health of the gateway. Nonces, and whether an answer came
// by the tunnel that it should have, are the caller's matter.
//
// # Probes
//
// The choice of any group is probed each InUse, and so is a path that a group
// left without loss, for as long as flows may linger there. All others are
// probed each Standby. A group is alarmed while its choice has missed a probe,
// or while it waits to get away from one that is lost or draining: then all paths of
// its order are probed each Suspect, the first time at once.
//
// A probe is missed when it is not answered within max(MissFloor, MissRTTs times
// the smoothed round trip), at most one second; a path that never answered is
// given that second (RFC 6298 section 2.1). Misses are judged by Poll alone and
// in the order of sending. A probe that was sent before one that was answered
// already is missed too, but does not count as one in a row: the path lives.
//
// An answer to any of the last 64 probes of a path is a sign of life, however
// late: it ends the run of misses. It feeds the round trip by RFC 6298's 1/8,
// where one sample counts as at most the time at which a probe is missed, so that a
// single spike moves little and a lasting change is followed. The first few
// answers of a path may have waited for the tunnel's handshake; until there are
// eight, the shortest counts.
//
// Everything else (sequences that were never sent, have been answered, or are
// older than the window, and paths that are gone) has no effect. Sequences never
// repeat, neither over a path's life nor in a later path with the same PathID.
//
// # Choice
//
// A group begins with the first of its order, even before that has answered;
// a path that is known to be dead or unhealthy is passed over if another is not.
// It leaves its choice when
//
//   - the choice is dead, for the first of the order that answered a probe that
//     was sent since the choice's first miss (the moment at which it was judged).
//     One that is draining or full will do only where every path without an
//     ailment is dead or new, and one without uplink only where every other is;
//   - the choice has lost its uplink, for the first of the order that has answered
//     lately and has not lost its own: without an ailment, then draining or full;
//   - the choice is draining or full, for the first that has answered lately and has no
//     ailment.
//
// If none is there, the group is stranded: it stays, and goes the moment that
// one is. Leaving is never refused and costs no budget. Whoever stays on a
// path that comes back has lost nothing.
//
// A group goes back to a path that it prefers when that has answered
// every probe, without an ailment, for Hold and a random part of HoldJitter, at
// the moment of an answer of that path. It does so at most Failbacks times in
// FailbackWindow, and is held beyond that until the window allows it. Where a path
// that it prefers still more will have been good for its hold within HoldJitter, it
// waits for that one: a region that comes back costs one failback.
//
// # Flows
//
// A choice is for new flows. What becomes of the flows on the path that was
// left is said by Event.Lost: those of a dead path, one without uplink, or one that
// was removed are lost, others go on where they are for Linger at most. A path on
// which flows linger is watched, and if it is lost meanwhile, an event says
// so though the choice does not change.
//
// # Stalls
//
// A caller that was stopped or starved has read no answers meanwhile. So a Poll
// that comes later than it was due by more than twice Suspect voids the probes
// that were under way: they are never missed, though their answers still count.
// A path is forgiven at most eight stalls in a row without any answer in between,
// so that a caller that is always late still notices a death. The time of a
// stall does not count for a hold, either.
//
// # What always holds
//
// The tests check this after every step of random histories:
//
//	I1  A dead choice is left only for a path that answered a probe sent since
//	    the first miss; a choice without uplink only for one that has it.
//	I2  A dead choice with such a path in its order has been left before
//	    the call returns that made it so. From the cut to the switch it takes
//	    at most InUse + 2 x timeout + (misses-2) x Suspect, and one Suspect if
//	    the timeout is no multiple of it; or, if that is longer, InUse + timeout
//	    + a round trip of the alternative; and the caller's own lateness.
//	I3  No choice changes while every probe is answered in time and healthy,
//	    and none while fewer probes in a row than Misses are lost.
//	I4  A group fails back at most Failbacks times in FailbackWindow.
//	I5  Leaving a dead path for a live one does not depend on the budget.
//	I6  A path is asked at most once per Suspect, and once more for each alarm.
//	I7  Stalls of the caller alone change no choice.
//	I8  An event says Lost exactly if its From is dead, has no uplink, or is gone.
//	I9  Equal seeds and equal calls give equal results.
//	I10 A choice never changes without an event.
package failover
