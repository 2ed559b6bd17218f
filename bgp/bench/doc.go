// Package bench holds bgp and its table against FRR's bgpd: time, memory, lookups, and bytes that
// FRR sends. It has tests only, and what it measures learns nothing of what it measures with.
//
// `make bench-evpn` gives both the same UPDATEs: from 5,000 VTEPs, of each host a route with its MAC
// alone and one with its IP address, as a route reflector sends them. With FRR 8.4.4, on two cores:
//
//	routes × peers              learn  withdraw  learn again     CPU  peak RSS  at end
//	       100k×1  dyetrace  0.125 s   0.055 s      0.079 s  0.11 s     41 MB   77 MB
//	               bgpd      0.249 s   0.378 s      0.303 s  0.24 s    132 MB  133 MB
//	      1000k×1  dyetrace  0.957 s   0.583 s      0.656 s  1.04 s    237 MB  315 MB
//	               bgpd      2.124 s   1.497 s      1.724 s  2.14 s   1060 MB 1063 MB
//	      1000k×2  dyetrace  1.832 s   0.969 s      1.380 s  1.60 s    351 MB  450 MB
//	               bgpd      5.149 s   2.169 s      2.833 s  5.19 s   1647 MB 1650 MB
//
// The lines of bgpd, and the times of ours, were taken on idle cores, the times before rib read routes
// ahead of its lock. CPU and memory of ours are of now, from cores that others used, too: memory does not
// hang on that, CPU little.
//
// BenchmarkLimits says what of it is spent on what. In processor time a route, on the same busy cores: 20 ns
// to read it from a socket, 30 ns to decode it, 740 ns to put it into a map of Go's by its key alone; 570 ns
// for a table to learn it: index, address, answer, and the pages that the kernel clears.
//
// bgpd is taken to have learned when it counts all routes, before it has chosen among them.
package bench
