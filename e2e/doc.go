// Package e2e drives the dyetrace binary as its users do, in a lab of real
// switches and real guests. It imports nothing of the product.
package e2e
