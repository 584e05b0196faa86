// Package deps holds no code of the program: its test is the policy of the source tree. Which package
// may import which, who may touch an outside module, and which calls have no place outside the command.
package deps
