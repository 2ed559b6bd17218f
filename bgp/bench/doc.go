// Package bench holds bgp and its table against FRR's bgpd: time, memory, lookups, and bytes that
// FRR sends. It has tests only, and what it measures learns nothing of what it measures with.
package bench
