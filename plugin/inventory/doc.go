// Package inventory knows who is where: networks and instances as files name them, and the
// hosts, bridges and endpoints that agents report. It never talks to an agent or a switch;
// what it knows is given to it.
//
// An instance is known by network and name, or by network and address, never by an address
// alone: two tenants may use the same addresses, and even the same MAC addresses, on one host.
//
// # Sharing
//
// A [Book] takes changes in and hands [Snapshot] values out. A snapshot never changes, so it is
// read without a lock, by any number of goroutines, for as long as they like; whoever plans a
// run from one snapshot sees one state of the world.
package inventory
