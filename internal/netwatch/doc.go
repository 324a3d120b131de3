// Package netwatch tells which network this machine is on and when its way out
// changes: another address, another default route, a link that went or came, a
// resume from sleep. It is what lets a tunnel session move at once and not when
// the next packet happens to be sent.
//
// It watches the kernel's routing messages and looks at what they led to, since
// most of them are not about the way out: every pod that starts brings a link
// and routes of its own. Messages seldom come alone, so it looks once they have
// been quiet for a moment.
//
// Which of several interfaces is used is the kernel's decision, by the metric of
// their default routes; network managers give wired links the lowest, wireless
// ones a higher and mobile ones the highest. A socket of the wildcard address
// follows it, and netwatch says when.
//
// It changes nothing and never asks another machine anything.
package netwatch
