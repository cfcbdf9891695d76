// Package docs reads the pages of docs/, so that tests can hold them true: commands
// are run, sentences are looked up in the code, and the reference of the policy is made
// of its schema.
//
// What a block of code in a page is for stands behind its three backquotes:
//
//	console              commands behind "$ " with what they print; they are run
//	console status=2     the same, whose last command ends with that status
//	console on=HOST      the same on a host of a testbed, where there is one
//	  gives=WORD         what the last command prints stands for WORD in later blocks
//	  background         the last command goes on while later ones run
//	yaml file=PATH       a file that is there for the commands behind it
//	sh                   commands that need more than a test has; they are only parsed
//
// In what commands print, "..." stands for anything, and a line of its own for any lines.
package docs
