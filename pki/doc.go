// Package pki makes and reads the certificates by which controller, agents and users know each
// other, and builds the TLS configurations that use them.
// It never decides what a peer may do, opens no connection, and offers no mode without
// certificates on both sides.
//
// # Identity
//
// A certificate says who its holder is by one URI (RFC 5280, section 4.2.1.6) among its subject
// alternative names:
//
//	dyetrace://ROLE/NAME
//
// ROLE is controller, agent or user; NAME is the controller's name, the agent's host or the
// user's name. DNS and IP names matter for controllers only: they are what a client dials. The
// common name is for readers and is never looked at.
//
// Any CA may issue these certificates; [CreateCA] and [OpenCA] are a small one for labs and
// small sites.
//
// # Rotation
//
// [ServerTLS] and [ClientTLS] look at their files at every handshake and read them again when
// one has changed, so that a renewed certificate, or a CA file that now trusts an additional CA,
// is in force without a restart. Connections that are already up keep what they were made with.
// While new files cannot be used, such as between the writing of a key and of its certificate,
// the old ones stay in force; the failure is logged once for each state of the files.
package pki
