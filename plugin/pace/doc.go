// Package pace says when a probe may go: how many each instance takes part in, how many are under way from a host, whose turn
// a connection is, and in which order a patrol goes round. It knows nothing of what probes are, sends none, and gets the time as an argument.
package pace
