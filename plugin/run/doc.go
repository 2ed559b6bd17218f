// Package run executes runs: from a scope to pairs, probes, samples and verdicts in the store. It
// decides when to send, to wait, to ask and to stop; what the evidence means is for package
// verdict to say, and it never talks to a switch.
//
// # The way of a run
//
//		preparing ──▶ probing ──▶ closing ──▶ explaining ──▶ over
//
//	  - preparing: all hosts on any path hear of the run, and answer with an audit of their hooks.
//	  - probing: probes go out as the pace allows. A pair whose points have all been seen is judged
//	    at once. One that arrived with a sample missing is judged when it has settled. Any other is
//	    tried again: if [hardAttempts] are lost, it waits; if some arrive, until a sequential test
//	    has decided whether it loses too much. While tcp does not come through, icmp is tried where
//	    nobody asked for either. What is late is told from what is lost: see patience.go.
//	  - closing: the agents attest their hooks a second time, after their last sample. If no pair
//	    waits, nobody waits for that either.
//	  - explaining: where the verdict asks for it, the host that saw the probe last replays it; and
//	    if its tunnel is the right one, the two hosts exchange UDP packets, once for all pairs of theirs.
//
// Some probes need that something is in place before they are sent (Arm of the contract): in no-touch
// that all hosts on the way keep them from guests, or they are not sent at all; after an answer that
// was not seen, that the next one is recognised without the stain's ToS, or they are sent without. An
// agent has [Config.AnswerTimeout] to say so. One that refuses is asked about each port by itself from then
// on, one that says nothing is not asked again until it is heard.
//
// What routes say of instances is asked once, when the run is planned: a route that changes while
// probes are under way is not seen.
//
// At the end of its time a run judges what it has; what it has not seen is unknown then, and
// never faulty.
//
// # Goroutines, and who waits for whom
//
// A run has two: one that turns events into results, and one that writes results to the store and
// only then shows them to watchers. While the second writes, results gather for its next
// transaction. A watcher reads a log that only grows, at its own speed: a slow one delays nobody,
// and none misses a verdict or gets one twice. There is no timer and no goroutine per pair.
package run
