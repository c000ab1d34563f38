#!/bin/sh
# Record what the tools print for each ruleset here, each in a namespace of its own:
#   sudo ./record.sh
# Recorded with iptables 1.8.9 and nft 1.0.6 (Debian 12) on Linux 6.18.
set -eu
cd "$(dirname "$0")"
for rules in *.rules; do
	name=${rules%.rules}
	unshare --net sh -eu -c "
		iptables-legacy-restore < $rules && iptables-legacy-save > $name.legacy.txt
		iptables-nft-restore < $rules && iptables-nft-save > $name.nft-save.txt
		nft -s -t -a list ruleset > $name.nft-list.txt" 2> /dev/null
done
for rules in *.nft; do
	unshare --net sh -eu -c "
		ip link set lo up
		nft -f $rules && nft -s -t -a list ruleset > ${rules%.nft}.nft-list.txt"
done
