package flows

import "regexp"

// committed matches a connection that is committed to connection tracking with an address translation,
// that to no address included: ct(commit,…,nat(src),…) of ovs-actions(7).
var committed = regexp.MustCompile(`\bct\(commit[^)]*,nat\(`)

// CommitsNAT says that a flow which is not ours commits connections with a translation of addresses.
// Open vSwitch 3.1.0's userspace datapath aborts when such a TCP connection is closed and one with the
// same addresses and ports follows (conntrack.c: assertion conn->conn_type == CT_CONN_TYPE_DEFAULT
// failed in conn_update_state()), as probes of scheme tcp do: their ports are always the same.
func CommitsNAT(all []Flow) bool {
	for _, f := range all {
		if !f.Ours() && committed.MatchString(f.Actions) {
			return true
		}
	}
	return false
}
