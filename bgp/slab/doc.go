// Package slab gives out blocks of memory that the garbage collector neither scans nor counts, and
// takes them back to give them out again. It knows nothing of what is in them.
//
// It is for tables of millions of records without pointers. On the collector's heap such a table
// costs twice its size, since a collection is due only when the heap has grown by as much again
// (GOGC); and a page that is copied to be changed is garbage, and the copy new memory that has to be
// cleared. Here a block that is put back is the next one given out.
//
// Huge pages (MADV_HUGEPAGE) are for what is read at random, see [NewHuge]: with the index of 1M routes in
// them, to withdraw these and learn them again takes a tenth less processor time. With all in them, to learn
// a first time took longer, as the kernel has to find and clear them.
//
// The first [small] bytes come from the heap all the same: most tables are small, and there are
// many in tests.
package slab
