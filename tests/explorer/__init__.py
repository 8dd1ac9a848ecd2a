"""The explorer: every power cut of short workloads, line by line, and what each leaves after recovery.

`lines` says what a cut may leave of a record of stores, `disk` holds the bytes of one crash image at a time, `examine`
recovers and judges it, `workloads` lists what is tried, `explore` runs it all on every processor and reports. The
oracle is `crash_rig.Run.judge`. docs/CRASH.md, "The explorer", says how to add an operation and a promise.
"""
