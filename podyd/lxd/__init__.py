"""All that names LXD: its REST API (`client`), its instances (`instances`), commands in them
(`execution`) and preparing it (`admin`). Nothing else in podyd knows how LXD is spoken to."""
