// Package sandbox runs the tests of a package in network, mount and process
// namespaces of their own, as root of a machine that nobody else sees.
// It never changes anything outside of them, and leaves nothing behind: with the
// last process the kernel takes down devices, mounts and daemons.
package sandbox
