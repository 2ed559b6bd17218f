// Package bench holds bgp and its table against FRR's bgpd: time, memory, lookups, and bytes that
// FRR sends. It has tests only, and what it measures learns nothing of what it measures with.
//
// `make bench-evpn` gives both the same UPDATEs: from 5,000 VTEPs, of each host a route with its MAC
// alone and one with its IP address, as a route reflector sends them. With FRR 8.4.4, on two cores:
//
//	routes × peers              learn  withdraw  learn again  learn, read     CPU  peak RSS   at end
//	       100k×1  dyetrace  0.131 s   0.114 s      0.111 s      0.091 s  0.17 s     41 MB    88 MB
//	                   bgpd  0.408 s   0.763 s      0.331 s      0.469 s  0.39 s    132 MB   132 MB
//	                  ratio     0.32      0.15         0.34         0.20    0.44      0.31     0.67
//	      1000k×1  dyetrace  0.956 s   0.769 s      0.824 s      0.684 s  1.17 s    236 MB   354 MB
//	                   bgpd  2.787 s   2.274 s      2.139 s      2.251 s  2.79 s   1060 MB  1063 MB
//	                  ratio     0.34      0.34         0.39         0.30    0.42      0.22     0.33
//	      1000k×2  dyetrace  1.350 s   1.066 s      1.317 s      1.512 s  1.65 s    349 MB   523 MB
//	                   bgpd  4.130 s   3.101 s      4.019 s      4.825 s  4.15 s   1647 MB  1650 MB
//	                  ratio     0.33      0.34         0.33         0.31    0.40      0.21     0.32
//
// All in one run, which had the two cores to itself. bgpd's times change by a third from run to run. "at end"
// is after 10 churns of 1000k×1, over which it grew by 2 %.
//
// These figures are of before a session read UPDATEs ahead of the table. Since then 1000k×1 was measured once,
// on cores that much else kept busy, for both alike: learn 0.60 to 0.72 s of 2.87 s (0.21 to 0.25), withdraw
// 0.54 to 0.59 s of 2.78 s (0.19 to 0.21), learn again 0.54 to 0.62 s of 3.73 s (0.14 to 0.17), CPU 0.65 to
// 0.71 s of 2.21 s, at end 336 to 356 MB of 1063 MB.
//
// BenchmarkLimits says what of it is spent on what. In processor time a route, on busy cores: 20 ns to read it
// from a socket, 27 ns to decode it, 490 ns to put it into a map of Go's by its key alone; 70 ns to read it ahead
// (decode, hash, networks) and 390 ns for a table to take it in: index, address, answer, and the pages that the
// kernel clears. A session does these two at a time.
//
// bgpd is taken to have learned when it counts all routes, before it has chosen among them.
package bench
