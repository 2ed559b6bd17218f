// Package bench holds bgp and its table against FRR's bgpd: time, memory, lookups, and bytes that
// FRR sends. It has tests only, and what it measures learns nothing of what it measures with.
//
// `make bench-evpn` gives both the same UPDATEs: from 5,000 VTEPs, of each host a route with its MAC
// alone and one with its IP address, as a route reflector sends them. With FRR 8.4.4, on two cores:
//
//	routes × peers              learn  withdraw  learn again  learn, read     CPU  peak RSS   at end
//	       100k×1  dyetrace  0.079 s   0.058 s      0.054 s      0.050 s  0.09 s     44 MB    89 MB
//	                   bgpd  0.260 s   0.392 s      0.336 s      0.305 s  0.25 s    132 MB   133 MB
//	                  ratio     0.30      0.15         0.16         0.16    0.36      0.33     0.67
//	       100k×2  dyetrace  0.128 s   0.076 s      0.091 s      0.107 s  0.15 s     56 MB   130 MB
//	                   bgpd  0.383 s   0.571 s      0.417 s      0.513 s  0.38 s    193 MB   194 MB
//	                  ratio     0.34      0.13         0.22         0.21    0.39      0.29     0.67
//	      1000k×1  dyetrace  0.499 s   0.453 s      0.443 s      0.484 s  0.69 s    240 MB   344 MB
//	                   bgpd  1.959 s   1.507 s      1.596 s      1.851 s  1.98 s   1060 MB  1063 MB
//	                  ratio     0.25      0.30         0.28         0.26    0.35      0.23     0.32
//	      1000k×2  dyetrace  0.973 s   0.733 s      0.932 s      1.074 s  1.23 s    340 MB   533 MB
//	                   bgpd  3.484 s   2.323 s      2.874 s      3.421 s  3.52 s   1648 MB  1651 MB
//	                  ratio     0.28      0.32         0.32         0.31    0.35      0.21     0.32
//
// All in one run, which had the two cores to itself. "at end" is after 10 churns of 1000k×1, and two of the
// others; of 1000k×1 it moved between 315 and 392 MB in seven runs, since pages that a reader's snapshot sees
// are copied. Withdrawing 100k×1 took bgpd between 0.046 and 0.763 s.
//
// A table takes in one UPDATE at a time, so two peers take twice as long as one where two cores are all
// there is; the second peer costs bgpd somewhat less than the first. What peers tell alike is in the index
// of routes once.
//
// BenchmarkLimits says what of it is spent on what. In processor time a route: 19 ns to read it from a socket,
// 28 ns to decode it, 560 ns to put it into a map of Go's by its key alone; 70 to 90 ns to read it ahead (decode,
// hash, networks) and 480 ns for a table to take it in: index, address, answer, and the pages that the kernel
// clears. Where two peers tell the same it is 340 ns each, where four do 290. A session reads ahead and takes in
// at a time.
//
// bgpd is taken to have learned when it counts all routes, before it has chosen among them.
package bench
