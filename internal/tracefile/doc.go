// Package tracefile is the form in which builds that were wanted are kept, so that
// they can be simulated: a JSON object a line. A line is a [Build], and the first
// may be a [Fleet].
//
// [Recorder] writes the file while a proxy runs, bounded, and [Reader] reads it
// and refuses what it does not understand, by file and line.
package tracefile
