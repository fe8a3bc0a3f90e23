#!/bin/busybox sh
# SPDX-License-Identifier: GPL-2.0-or-later
# The lab guest's /init.  For each directory /lab/jobs/N it runs the driver on a
# VM of its own (or copies of it at once) with a trace of its own; /out goes back as a tar on /dev/vda.
# Files in /lab are written by tdpmmu.lab.initramfs.
/bin/busybox mkdir -p /proc /sys /dev /tmp /out
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tracefs tracefs /sys/kernel/tracing
T=/sys/kernel/tracing
say() { echo "LAB $(cut -d' ' -f1 /proc/uptime) $*"; }
say up

while read -r module parameters; do
	insmod /lab/modules/$module.ko $parameters || say "cannot load $module"
done </lab/modules.list
echo always >/sys/kernel/mm/transparent_hugepage/enabled
# khugepaged comes when it likes, and would make runs differ
echo 100000000 >/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs
[ -s /lab/hugepages ] && cat /lab/hugepages >/proc/sys/vm/nr_hugepages
{
	uname -a
	grep -m1 'model name' /proc/cpuinfo
	grep -H '' /sys/module/kvm*/parameters/*
} >/out/machine.txt 2>/dev/null
say modules

echo 0 >$T/tracing_on
echo mono >$T/trace_clock
echo 1 >$T/options/record-tgid	# before there are tasks to record
cat /lab/buffer_kb >$T/buffer_size_kb
while read -r event filter; do
	[ "$filter" ] && echo "$filter" >$T/events/$event/filter
	[ -e $T/events/$event/enable ] && echo 1 >$T/events/$event/enable ||
		echo "event $event: not there" >>/out/tracing.txt
done </lab/events
while IFS='|' read -r probe other; do
	echo "$probe" 2>/dev/null >>$T/dynamic_events ||
		{ [ "$other" ] && echo "$other" 2>/dev/null >>$T/dynamic_events; } ||
		{ echo "probe $probe: refused"; tail -n 3 $T/error_log; } >>/out/tracing.txt
done </lab/probes
[ -e $T/events/tdpmmu/enable ] && echo 1 >$T/events/tdpmmu/enable
if [ -s /lab/functions ]; then
	# by number: a name costs a look at every function of the kernel
	grep -n '\[kvm\]' $T/available_filter_functions | sed 's/:/ /; s/ \[kvm\]//' >/tmp/kvm
	grep -xEf /lab/functions /tmp/kvm | cut -d' ' -f1 | tr '\n' ' ' >/tmp/numbers
	cat /tmp/numbers >$T/set_ftrace_filter
	echo function >$T/current_tracer
fi
say tracing

if [ -f /lab/script ]; then
	sh /lab/script >/out/script.txt 2>&1
	say "script: $?"
fi
for job in $(cd /lab/jobs && ls | sort -n); do
	mkdir -p /out/$job
	while read -r parameter value; do
		echo "$value" >/sys/module/kvm/parameters/$parameter
	done </lab/parameters
	echo >$T/trace
	echo 1 >$T/tracing_on
	copies=
	for copy in $(cat /lab/jobs/$job/others); do
		driver $(cat /lab/jobs/$job/options) </lab/jobs/$job/program >/out/$job/prog-$copy.txt 2>&1 &
		copies="$copies $!"
	done
	driver $(cat /lab/jobs/$job/options) </lab/jobs/$job/program >/out/$job/prog.txt 2>&1
	status=$?
	for copy in $copies; do
		wait $copy || status=$?
	done
	echo "exit status $status" >/out/$job/status
	usleep 100000	# RCU callbacks: tables are freed after the VM
	echo 0 >$T/tracing_on
	cat $T/trace >/out/$job/trace.txt
	if [ -x /bin/trace-cmd ]; then
		trace-cmd extract -k -o /out/$job/trace.dat >/out/$job/trace-cmd.txt 2>&1
	fi
	say "job $job: $(cat /out/$job/status)"
done
dmesg >/out/dmesg.txt
tar cf /dev/vda -C /out . && sync && say saved
poweroff -f
