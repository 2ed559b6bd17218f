// Package agent is one host's part of Dyetrace: it keeps the hooks of the
// host's bridges live, sends probes in by their dye ports, reads samples out
// of them, and explains what a bridge does with a packet. It decides nothing
// about connectivity: verdicts are the controller's.
//
// # Parts
//
//   - Agent ties them together and keeps the session with the controller (session.go);
//   - hooks reconciles every bridge's hook with what is wanted, and attests to it (hooks.go, bridge.go);
//   - runs knows the keys of the runs under way and turns copies into samples (runs.go);
//   - inject.go and explain.go answer the controller's requests.
//
// # Ordering and backpressure
//
// Everything the agent says goes through one bounded queue. Samples that find
// it full are dropped and counted against their bridge (HookWindow.lost), so
// that the controller judges the probes they belonged to unknown. Answers
// (Ready, Injected, Finished, Explanation) wait for room instead. All samples
// of a run that were read before its Finish are queued before its Finished.
package agent
