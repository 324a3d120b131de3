package pki

// A public key made with openssl ecparam, and its hashes by openssl dgst.
const (
	testPublicKey = `-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEZRyGWhIjbG7QRWBDpzvRDfLDR+lJ
88K9IogDVet7Y76C2Sy8lvSEXkthDHPc8JXB83tzdxb3O1AGnEoQLyJ2Wg==
-----END PUBLIC KEY-----
`
	testFingerprint = "SHA256:rxB0GmYpbU9R0RRQBM0GD0vyuMmBaaLxeTuCCHajADY"
	testPin         = "af10741a66296d4f51d1145004cd060f4bf2b8c98169a2f1793b820876a30036"
)
