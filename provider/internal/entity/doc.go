// Package entity is the envelope around every resource of the provider: decode
// the plan or state, open the engine, set the deadline, act, and write what the
// engine says back to state. An entity's own package holds its schema, its model
// and one small function for each verb; everything that must be the same for all
// of them is here.
//
//	Create/Update   act --ok--------------------> state as planned, unknowns filled
//	                    --unfinished, id known--> the same with status "incomplete: …", and a warning
//	                    --failed, id known------> state as it really is, and an error
//	                    --failed, no id---------> no state, and an error
//	Read            act --ok--------------------> state as it really is
//	                    --not found-------------> removed from state
//	                    --unreachable-----------> state kept (but for a status known not to be
//	                                              ready), one warning a cluster and run
//	Delete          act --ok or not found-------> removed from state
//	                    --unfinished------------> state kept, status "incomplete: destroying", an error
//
// The package never touches a host or a cluster itself, and writes no secret.
package entity
