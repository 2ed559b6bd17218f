// Package teacher is a BGP speaker that has routes to tell, for tests: a GoBGP server in a process
// of its own. It is never part of the product, and asserts nothing itself.
package teacher
