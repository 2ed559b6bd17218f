// Package bench holds bgp and its table against FRR's bgpd: time, memory, lookups, and bytes that
// FRR sends. It has tests only, and what it measures learns nothing of what it measures with.
//
// `make bench-evpn` gives both the same UPDATEs: from 5,000 VTEPs, of each host a route with its MAC
// alone and one with its IP address, as a route reflector sends them. On two busy cores, with FRR
// 8.4.4:
//
//	routes × peers              learn  withdraw  learn again     CPU  peak RSS
//	       100k×1  dyetrace  0.165 s   0.067 s      0.115 s  0.13 s     43 MB
//	               bgpd      0.329 s   0.218 s      0.377 s  0.29 s    132 MB
//	      1000k×1  dyetrace  1.106 s   0.592 s      0.831 s  1.10 s    280 MB
//	               bgpd      6.338 s   5.039 s      4.066 s  2.99 s   1060 MB
//	      1000k×2  dyetrace  2.087 s   0.979 s      1.574 s  1.97 s    445 MB
//	               bgpd      5.269 s   3.152 s      3.121 s  4.76 s   1646 MB
//
// These are of rib when its pages were on the collector's heap and snapshots copied the index: before
// package slab, Networks that map route targets to VNIs, and Ethernet segments. They say how it stands to
// bgpd, not what it takes now.
//
// The times hang on what else the machine does, CPU and memory hardly. bgpd is taken to have learned
// when it counts all routes, before it has chosen among them.
package bench
