// Package ovn asks OVN's southbound database what a flow of br-int is for. It reads, by single
// transactions on a connection that lasts as long as one question, and never changes, monitors or
// locks anything.
//
// A flow's cookie is the first 32 bits of the UUID of the row that it was made from
// (ovn-architecture(7)): of a Logical_Flow, or where a packet leaves the logical network, of a
// Port_Binding and others. The database cannot be asked for the beginning of a UUID, so the question
// is narrowed by what a logical flow and its OpenFlow flow have in common: the priority and, where the
// flow names one, the datapath's tunnel key. What comes back is UUIDs alone, at most maxAnswer bytes.
//
// The wire is JSON-RPC by RFC 7047, section 4; the tables are those of ovn-sb(5), OVN 23.03.
package ovn
