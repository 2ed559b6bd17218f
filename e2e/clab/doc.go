// Package clab tests what network engineers do with the labs' files by hand: plain containerlab deploys
// and destroys them; and that labs of containers leave nothing behind, however they end. Beside it is
// what runs containerlab, and Docker, for tests. `make e2e-clab` runs all of it, and the tests of
// package e2e on containers besides.
package clab
