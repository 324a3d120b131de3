// Package enroll is how a device becomes a node: the one-time join token, the
// two messages a device and a gateway exchange, and the cloud side that checks
// the token, writes the enrolment record and has the two certificates signed.
//
//	device                     gateway                      apiserver
//	  | Request (token, CSRs)     |                              |
//	  |-------------------------->| Enroller.Enroll              |
//	  |                           |  token: verify, bind name    |
//	  |                           |----------------------------->| Secret join-token-<id>
//	  |                           |  record: EdgeNode, its key   |
//	  |                           |----------------------------->| EdgeNode.status.key
//	  |                           |  two CertificateSigningRequests
//	  |                           |----------------------------->| approver, signer
//	  | Response (certificates)   |<-----------------------------|
//	  |<--------------------------|                              |
//
// The life of a token:
//
//	minted -> bound (a name is written) -> used (a key is written) -> expired or revoked -> gone
//
// A used token is accepted again from the same key and for the same name only,
// so that a join that was interrupted may be finished.
//
// A node renews its certificates at the apiserver, through its hub, and through
// the gateway once they have ended; see RenewRequest.
//
// The package never signs or approves anything itself (see
// internal/controllers), and never puts a token into an error, a log line or
// the cluster: the cluster keeps only the SHA-256 of the secret part.
package enroll
