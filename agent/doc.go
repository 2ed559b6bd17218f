// Package agent is one host's part of Dyetrace: it keeps the hooks of the
// host's bridges live, sends probes in by their dye ports, reads samples out
// of them, and explains what a bridge does with a packet. It decides nothing
// about connectivity: verdicts are the controller's.
//
// # Parts
//
//   - Agent ties them together and keeps the session with the controller (session.go);
//   - hooks reconciles every bridge's hook with what is wanted, and attests to it (hooks.go, bridge.go),
//     woken by a watch of what others do to the bridge's flows (watch.go), until they do it too often (fight.go);
//   - dye.go reads the dye port of a bridge, and counts.go holds what the hook counted against it;
//   - taps samples what leaves for instances, and withholds it (taps.go, withhold.go);
//   - runs knows the keys of the runs under way and turns copies into samples (runs.go);
//   - inject.go, arm.go and explain.go answer the controller's requests.
//
// # Arming
//
// Before it sends certain probes, a controller asks for what they need (Arm), and gets
// all of it or an error. Ports whose TCP answers are known by their ports alone stay
// so while any run that is not over wants them; the rest of the hook is live all the
// time, so its epoch does not rise with them. Probes that no guest may see are dropped
// at to-instance, by token and address, for a given time. The lease outlives the end
// of their run by some seconds, the sessions and, where tcx is missing, the agent: a
// probe, or the RST that withdraws it, may be on its way still. Nobody answers such a
// probe, so each is withdrawn when it has settled; that RST has the same token, and is
// dropped like it. What is not sampled is not dropped either: a request that names
// such a port is refused. A guest can see a probe only if, in the middle of a run, the
// program is taken off its port, or the sampler fails.
//
// A sampler that fails is opened again after a while, with all leases. Nobody takes
// what it missed for losses: to-instance is declared absent meanwhile, both changes
// start a new epoch, and a loss is counted.
//
// # Living beside others
//
// The watch (ovs.Watch) sets flags and wakes the reconciler, and never waits for it; the
// reconciler waits for barriers of the watch, and does what the flags say: put back what
// was deleted, within a tenth of a second, and attest it once the datapath does as it says, as long
// again later (BenchmarkGap); read all flows again where a change may be in the
// hook's way, at once if somebody is to be told that the hook is live, else not for more
// than a twentieth of the time; move the hook if its mark or table was taken. Each of these
// starts a new epoch but for a doubt that was none. A hook that is deleted or overruled for
// the fourth time within two minutes is taken off altogether and left alone for 5 s, then
// for twice as long each time. Where there is no hook, by that or because there can be
// none, no flow of ours stays.
//
// # Counters
//
// A copy can get lost where nobody of ours sees it: between the switch and the ring. So the
// hook's flows count as well (n_packets), and an audit after a run attests both numbers
// (PointCount). Counters are late by up to half a second: an audit has the switch bring
// them up to date, and reads what came out before and after, which bounds the difference;
// where nothing came by meanwhile it is exact. They begin anew with an epoch.
//
// # Ordering and backpressure
//
// Everything the agent says goes through one bounded queue. Samples that find
// it full are dropped and counted against their bridge (HookWindow.lost), so
// that the controller judges the probes they belonged to unknown. Answers
// (Ready, Armed, Injected, Finished, Explanation) wait for room instead. All samples
// of a run that were read before its Finish are queued before its Finished.
package agent
