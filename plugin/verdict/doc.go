// Package verdict judges a pair: what was expected and what was seen go in, a verdict, a
// place and a cause come out. It does no I/O, knows no time, and two calls with equal evidence
// return equal results.
//
// # What proves what
//
//   - A sample proves every hop before it. The last point of the path seen: healthy, even if a
//     sample on the way is missing; that one was our loss.
//   - Absence proves nothing, unless the hook of that point was audited live before and after
//     the probe, with the same epoch and the same count of lost samples, by an agent that was
//     connected all the while. Then the packet did not pass there.
//   - Nor does it prove anything of an answer, unless the answer certainly bore the stain:
//     guests need not reflect the ToS (a SYN-ACK of Linux does not), and hooks know answers by
//     it. It did if it was seen with it; if the destination's bridge was armed to know the
//     guest's TCP answers by their ports and to stain them; or if the bridge had room for the
//     flow that knows the reply to an echo request. At an instance's port, TCP answers are
//     known whatever their ToS.
//   - What lies after the last point seen and before the first point whose absence is proof is
//     the segment that failed.
//   - If the guest lies in the segment, it may be the guest who is silent. What the bridge's
//     flows do with the very packet (an [Explanation]) decides: dropped is faulty, or policy
//     where a security rule dropped it; delivered is silent; no explanation is unknown.
//   - A packet that left for an instance by another OpenFlow port than the instance's proves nothing
//     by itself, since the port may have been plugged in anew. Where the flows name another port,
//     too, it was misdirected.
//   - That a port is not on its bridge is a fact, as good as a sample.
//
// All else is unknown. With several probes of one pair, one that arrived is enough for healthy,
// unless a test of the pair's loss (package sequential) says that so many others were provably lost
// that it is faulty; which of them were not provably lost does not count.
// if none arrived, the one that came furthest is judged, since it proves the others' segments
// passable. Of those that came equally far, one whose answer would have been seen is judged.
//
// # No-touch
//
// Where no guest may see a probe, it is followed up to where it leaves for the guest, and that
// is the goal: nobody answers, so nobody is silent, unless the port is down. The way back is a
// path of its own, with probes of its own. [Combine] makes one verdict of there and back, and
// of what several schemes say.
//
// # Routes
//
// Where routes (EVPN) tell of an instance, a tunnel that the flows take, or the outer source address
// of an answer, is held against them and the inventory: a cause that begins with "stale VTEP:" has
// both addresses, whom each supports, and the age of the route. An agent that reports the instance's
// port is believed more than routes, and those more than a file alone. So routes make no pair
// healthy or faulty. They turn faulty into unknown where the fault rests on the instance being where
// only a file has it, and routes have it elsewhere.
//
// # Underlay
//
// What the flows send into the right tunnel, and the other host does not see, was lost by the network
// between them or by a tunnel's end. An exchange of UDP packets between the tunnel addresses
// ([Underlay]) tells which, once the explanation is there. It claims what it saw: that nothing arrives
// is the network's doing only if a router says so, or if the other host had other packets of late; and
// that all arrive says that UDP passes, not that the tunnel's protocol does. Large packets that are lost
// explain no small one's loss; they make a healthy pair faulty where somebody asked ([WithMTU]).
//
// # What healthy does not say
//
// The answer is seen as it enters the source's bridge. Whether it also left by the source's
// port is seen only where that bridge offers to-instance points.
package verdict
