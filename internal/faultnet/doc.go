// Package faultnet is a bad network for tests: a TCP proxy that delays, throttles, stalls, cuts,
// corrupts and duplicates what passes, differently in each direction, as told or at random from a seed.
//
// A [Proxy] stands in front of one address. What it does to the bytes is a [Faults], which may be
// changed at any moment and then holds for the connections there are and those to come; [Proxy.Cut]
// ends the connections there are; [Proxy.Storm] does all of it again and again.
//
// TCP hides lost and doubled packets, so that what is corrupted or duplicated here is what no network
// should let through: it stands for a faulty device on the way, or for somebody who does it on purpose.
package faultnet
