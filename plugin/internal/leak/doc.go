// Package leak fails a package's tests if goroutines outlive them. It stops none.
package leak
