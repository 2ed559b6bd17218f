// Package bench holds bgp and its table against FRR's bgpd: time, memory, lookups, and bytes that
// FRR sends. It has tests only, and what it measures learns nothing of what it measures with.
//
// `make bench-evpn` gives both the same UPDATEs: from 5,000 VTEPs, of each host a route with its MAC
// alone and one with its IP address, as a route reflector sends them. With FRR 8.4.4, on two cores:
//
//	routes × peers              learn  withdraw  learn again  learn, read     CPU  peak RSS   at end
//	       100k×1  dyetrace  0.072 s   0.055 s      0.051 s      0.048 s  0.08 s     39 MB    74 MB
//	                   bgpd  0.235 s   0.046 s      0.620 s      0.360 s  0.24 s    132 MB   133 MB
//	                  ratio     0.31      1.18         0.08         0.13    0.33      0.30     0.56
//	      1000k×1  dyetrace  0.488 s   0.426 s      0.427 s      0.497 s  0.61 s    235 MB   367 MB
//	                   bgpd  1.971 s   1.438 s      1.627 s      1.895 s  1.98 s   1061 MB  1063 MB
//	                  ratio     0.25      0.30         0.26         0.26    0.31      0.22     0.35
//	      1000k×2  dyetrace  1.006 s   0.757 s      0.938 s      1.079 s  1.26 s    353 MB   492 MB
//	                   bgpd  2.979 s   2.065 s      2.481 s      2.799 s  3.01 s   1648 MB  1651 MB
//	                  ratio     0.34      0.37         0.38         0.39    0.42      0.21     0.30
//
// All in one run, which had the two cores to itself. "at end" is after 10 churns of 1000k×1, and two of the
// others; it moved between 350 and 392 MB in five runs. bgpd's withdrawal of
// 100k×1 took 0.763 s in another run: why so little here is not known.
//
// Two peers take twice as long as one here, since the table takes in one burst at a time; the second
// peer costs bgpd half as much as the first.
//
// BenchmarkLimits says what of it is spent on what. In processor time a route, on busy cores: 20 ns to read it
// from a socket, 27 ns to decode it, 490 ns to put it into a map of Go's by its key alone; 70 ns to read it ahead
// (decode, hash, networks) and 390 ns for a table to take it in: index, address, answer, and the pages that the
// kernel clears. A session does these two at a time.
//
// bgpd is taken to have learned when it counts all routes, before it has chosen among them.
package bench
