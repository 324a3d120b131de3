// Package pki keeps certificate authorities and certificates as declared
// resources: a caller says what it needs, and a Store makes it, keeps it, and
// makes it anew when two thirds of its life are over or the declaration has
// changed.
//
//	        Ensure                  2/3 of life, or declared differently
//	(none) ───────▶ issued ────────────────────────▶ issued again
//
// Every key is P-256: a key takes under a millisecond to make, where RSA takes
// a hundred, and handshakes of small devices stay small.
//
// A Store is a private directory (0700). Keys are 0600 and certificates 0644.
// Files are replaced in one step. A renewal keeps the private key and replaces
// only the certificate, so that a program that reloads the two never sees a
// pair that does not match; removing a key file makes a new key.
//
// Clocks of edge devices are often wrong. Certificates are valid from a day
// before they are made, and one whose validity lies in the future is left
// alone: the clock is wrong, not the certificate.
//
// The package never replaces an authority, whatever its age: everything that
// trusts it would have to be told first. It never logs and never puts key
// material into an error.
package pki
