// Package ovs drives one host's Open vSwitch: it watches its database, keeps dye
// ports, reads and changes flows, and asks what flows would do with a packet.
// It never decides which flows there should be (flows does), and touches nothing
// that is not ours: no controller, fail mode, group or meter of any bridge.
//
// Semantics: ovs-vswitchd.conf.db(5), ovs-ofctl(8) and ofproto/trace of
// ovs-vswitchd(8), Open vSwitch 3.1. System and netdev datapaths are the same here.
//
// # Ways to the switch
//
//	ovsdb-server  ◀── libovsdb: bridges, ports and their numbers; dye ports
//	ovs-vswitchd  ◀── ovs-ofctl:  flows in bundles, port flags (BRIDGE.mgmt in RunDir)
//	              ──▶ ovs-ofctl:  changes of flows, a monitor a bridge that runs on
//	              ◀── OpenFlow:   what is asked often: our flows, and what has a sweep begin (BRIDGE.mgmt)
//	              ◀── ovs-appctl: ofproto/trace                (ovs-vswitchd.PID.ctl)
//
// Port flags go through go-openvswitch. Flows do not: its flows have no hard
// timeout, its bundles neither delete_strict nor modify_strict, and its reader of
// dumps refuses actions that it does not know, of which any foreign pipeline has
// some. So flows are text from package flows, handed to ovs-ofctl as it is; and what we read of
// ours by OpenFlow is known by its bytes once ovs-ofctl has said what they mean.
//
// # Freshness
//
// Snapshot is as fresh as the database's last notice, while Run runs and the
// database answers; while it does not, it is the last one known. Sync makes it as
// fresh as the question. Everything else asks the switch when it is called, whether
// Run runs or not.
package ovs
