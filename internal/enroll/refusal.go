package enroll

import "errors"

// refuse makes an error that is told to the device as it is. Its message must
// hold nothing that a stranger may not know.
func refuse(code Code, message string) error { return &RemoteError{Code: code, Message: message} }

// refusal returns what to tell the device: the refusal in err's chain, or that
// something of ours broke, without what.
func refusal(err error) *RemoteError {
	var remote *RemoteError
	if errors.As(err, &remote) {
		return remote
	}
	return &RemoteError{Code: CodeInternal, Message: "the cluster could not finish the join; trying again may help"}
}
