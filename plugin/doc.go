// Package plugin is the controller: it wires inventory, fleet, runs, BGP speaker, store and server
// together by a configuration. It does nothing that one of them could do.
package plugin
