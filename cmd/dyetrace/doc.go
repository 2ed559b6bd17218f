// Command dyetrace is the whole of Dyetrace in one binary: the controller (serve), the agent of
// a host (agent), and the verbs by which people and scripts use them.
// It wires; what decides and what touches switches stands in the packages that it imports.
//
// Answers go to standard output, everything else to standard error. Each verb has a file and a
// constructor of its own, and shares no state with the others.
package main
